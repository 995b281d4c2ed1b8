/*
 * Compiled by Debian 12's cross compilers, so that tests need none:
 *
 *   OPTIONS="-nostdlib -static -Wl,-e,0 -Wl,--build-id=none big_endian.c"
 *   powerpc-linux-gnu-gcc -gdwarf-2 -o big_endian_32_dwarf2.elf $OPTIONS
 *   s390x-linux-gnu-gcc   -gdwarf-5 -o big_endian_64_dwarf5.elf $OPTIONS
 */
struct part {
	short low;
	unsigned char high;
};

struct whole {
	unsigned int mode : 3, level : 7;
	int delta : 9;
	unsigned long long wide : 40;
	short sum;
	char text[8];
	double ratio;
	enum { IDLE, BUSY = 300 } state;
	_Bool ready : 1;
	unsigned char count : 2;
	struct part parts[2];
	void *next;
	unsigned short grid[2][3];
};

struct whole whole = {
	.mode = 5, .level = 100, .delta = -200, .wide = 0x123456789aULL, .sum = -2, .text = "text", .ratio = 1.5,
	.state = BUSY, .ready = 1, .count = 2, .parts = { { -7, 200 }, { 8, 9 } }, .next = (void *)0x1234,
	.grid = { { 1, 2, 3 }, { 4, 5, 0xabcd } },
};
