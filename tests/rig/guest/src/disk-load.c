/*
 * disk-load: writes a disk again and again, reads it back, and never believes its memory.
 *
 *   disk-load DISK WORKERS BLOCKS
 *
 * Each worker has BLOCKS blocks of the disk, as much memory to write them from, and as much again
 * that nobody but the disk writes to. It gives the next blocks a new version, reads them into that
 * memory, and goes on until it is told to stop. Before it does so again, it looks whether all memory
 * still holds what it did last time. A machine that loses what a device or a processor wrote, as a
 * migration may, is found out when the worker comes by.
 *
 * Prints "pass WORKER VERSION" whenever a worker has been at all its blocks. It takes lines on its
 * standard output, too: all are printed in answer, and "stop" ends it. It looks at all memory and
 * reads all blocks once more then, and prints "worker WORKER version VERSION next BLOCK" for each:
 * blocks before BLOCK have that version, and the others the one before. Ends with 1, and one line
 * that begins with its name, on anything unexpected.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS (BLOCK / sizeof(uint64_t))
#define AT_ONCE 16              /* blocks that one request writes or reads */
#define STEP 0x9e3779b97f4a7c15ull
#define LOOK_MILLISECONDS 100   /* how often to look for workers that have ended */

static volatile int *stopping;  /* shared by all processes */

/* Ends the program with one line that names the cause. */
static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    char text[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    dprintf(1, "disk-load: %s\n", text);
    _exit(1);
}

static void *memory_or_fail(size_t size)
{
    int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);

    if (memory == MAP_FAILED)
        fail("no memory of %zu bytes: %s", size, strerror(errno));
    return memory;
}

/* Each word of a block tells block and version; tests/guest/migrating.py knows how. */
static uint64_t word(uint64_t block, uint64_t version, size_t index)
{
    return (block << 32 | version) + index * STEP;
}

static void fill(uint64_t *words, uint64_t block, uint64_t version)
{
    for (size_t index = 0; index < WORDS; index++)
        words[index] = word(block, version, index);
}

static void check(const char *where, const uint64_t *words, uint64_t block, uint64_t version)
{
    for (size_t index = 0; index < WORDS; index++)
        if (words[index] != word(block, version, index))
            fail("%s: block %llu has version %llu, not %llu, at word %zu", where, (unsigned long long)block,
                 (unsigned long long)((words[index] - index * STEP) & 0xffffffff),
                 (unsigned long long)version, index);
}

static void check_all(const char *where, const uint64_t *memory, uint64_t first, size_t from, size_t count,
                      uint64_t version)
{
    for (size_t block = from; block < from + count; block++)
        check(where, memory + block * WORDS, first + block, version);
}

static void work(const char *path, int number, size_t blocks)
{
    uint64_t first = (uint64_t)number * blocks, version;
    uint64_t *ours = memory_or_fail(blocks * BLOCK), *memory = memory_or_fail(blocks * BLOCK);
    size_t place = 0;
    int disk = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

    if (disk < 0)
        fail("cannot open %s: %s", path, strerror(errno));
    for (version = 1; !*stopping; version++) {
        for (place = 0; place < blocks && !*stopping; place += AT_ONCE) {
            off_t offset = (first + place) * BLOCK;

            if (version > 1) {
                check_all("memory", memory, first, place, AT_ONCE, version - 1);
                check_all("our own memory", ours, first, place, AT_ONCE, version - 1);
            }
            for (size_t block = place; block < place + AT_ONCE; block++)
                fill(ours + block * WORDS, first + block, version);
            if (pwrite(disk, ours + place * WORDS, AT_ONCE * BLOCK, offset) != AT_ONCE * BLOCK)
                fail("cannot write at %lld: %s", (long long)offset, strerror(errno));
            if (pread(disk, memory + place * WORDS, AT_ONCE * BLOCK, offset) != AT_ONCE * BLOCK)
                fail("cannot read at %lld: %s", (long long)offset, strerror(errno));
            check_all("what was read", memory, first, place, AT_ONCE, version);
        }
        if (place == blocks)
            dprintf(1, "pass %d %llu\n", number, (unsigned long long)version);
    }
    version--;
    if (version > 1)
        check_all("memory", memory, first, place, blocks - place, version - 1);
    check_all("memory", memory, first, 0, place, version);
    if (pread(disk, memory, blocks * BLOCK, first * BLOCK) != (ssize_t)(blocks * BLOCK))
        fail("cannot read it all: %s", strerror(errno));
    if (version > 1)
        check_all("disk", memory, first, place, blocks - place, version - 1);
    check_all("disk", memory, first, 0, place, version);
    dprintf(1, "worker %d version %llu next %zu\n", number, (unsigned long long)version, place);
}

/* Answers lines until one tells to stop, or until the first worker has ended, which is too soon. */
static void wait_for_stop(void)
{
    struct pollfd port = {.fd = 1, .events = POLLIN};
    char line[80];
    size_t length = 0;

    for (;;) {
        siginfo_t ended = {0};

        if (!waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT) && ended.si_pid)
            return;
        if (poll(&port, 1, LOOK_MILLISECONDS) <= 0)
            continue;
        if (length == sizeof(line) || read(1, line + length, 1) != 1)
            fail("nobody is there to stop it");
        if (line[length++] == '\n') {
            if (write(1, line, length) != (ssize_t)length)
                fail("cannot answer");
            if (length == 5 && !memcmp(line, "stop\n", 5))
                return;
            length = 0;
        }
    }
}

int main(int argc, char **argv)
{
    int workers, status, result = 0;
    size_t blocks;

    if (argc != 4 || (workers = atoi(argv[2])) < 1 || (blocks = atoi(argv[3])) < 1 || blocks % AT_ONCE)
        fail("usage: disk-load DISK WORKERS BLOCKS, blocks in multiples of %d", AT_ONCE);
    stopping = memory_or_fail(BLOCK);
    for (int number = 0; number < workers; number++) {
        pid_t pid = fork();

        if (pid < 0)
            fail("cannot fork: %s", strerror(errno));
        if (!pid) {
            work(argv[1], number, blocks);
            _exit(0);
        }
    }
    wait_for_stop();
    *stopping = 1;
    while (wait(&status) > 0)
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            result = 1;
    return result;
}
