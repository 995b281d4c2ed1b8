/*
 * Load on a vhost-user back-end: a front-end and a driver, so small that they are not what is measured.
 *
 *   vhost_load [-dpk] SOCKET FILE OPERATION SIZE DEPTH SECONDS
 *       OPERATION is randread, randwrite, read, write for a disk that is FILE, or entropy, where
 *       FILE counts for nothing. Keeps DEPTH requests of SIZE bytes in flight for SECONDS, after a
 *       warm-up, and prints one line of JSON. It waits as a guest does: it asks for a call before
 *       it sleeps, and wants none while it is at work.
 *       -d: direct descriptors, -k: a packed ring, -p: poll the ring and never ask for a call.
 *   vhost_load source FILE SIZE SECONDS
 *       Reads FILE in pieces of SIZE bytes and prints the same line: what a back-end can reach at most.
 *
 * Each page of the disk holds, in its first and last 8 bytes, its number and a generation; what is
 * between is the same in all (tests/bench/vhost_user.py writes it). What is read is checked, and
 * what was written is looked up in the file at the end.
 *
 * Exit status: 0 if the report was printed, whatever it says; 1 if something would not do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "vhost_ring.h"

#define PAGE 4096
#define WORDS (PAGE / 8)
#define GENERATION_BITS 40
#define GENERATIONS ((1ull << GENERATION_BITS) - 1)
#define GUEST_BASE 0x100000000ull
#define QUEUE_SIZE 128
#define WARM_UP_NS 100000000ull
#define STALL_MS 2000
#define CHECK_WHOLE_PAGE_EVERY 16
#define LATENCY_STEP_NS 50
#define LATENCY_STEPS 2000000 /* up to 100 ms */

enum {
    GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18,
};
#define F_BLK_FLUSH (1ull << 9)
#define F_INDIRECT (1ull << 28)
#define F_EVENT_IDX (1ull << 29)
#define F_PROTOCOL (1ull << 30)
#define F_VERSION_1 (1ull << 32)
#define F_PACKED (1ull << 34)
#define P_REPLY_ACK (1ull << 3)
#define P_CONFIG (1ull << 9)

enum operation { RANDREAD, RANDWRITE, READ, WRITE_ON, ENTROPY };
static const char *const names[] = { "randread", "randwrite", "read", "write", "entropy" };

struct slot {
    struct part parts[MAX_PARTS];
    struct { uint32_t type, reserved; uint64_t sector; } header;
    uint8_t status;
    uint64_t offset, started;
} __attribute__((aligned(128)));

struct load {
    enum operation operation;
    bool poll;
    unsigned depth;
    uint64_t size, disk, position, random, generation;
    int socket, kick, call;
    clockid_t backend_clock;
    char *memory, *data;
    uint64_t memory_bytes;
    struct slot *slots;
    struct ring ring;
    uint64_t done, bytes, kicks, calls, stalls, wrong, ns, cpu_ns;
    uint32_t *latencies;
    bool *written; /* by page */
    uint64_t template[WORDS];
};

static void die(const char *what)
{
    fprintf(stderr, "vhost_load: %s: %s\n", what, errno ? strerror(errno) : "not as it must be");
    exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;

    if (clock_gettime(clock, &t) < 0) {
        die("the back-end's CPU time");
    }
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* The front-end. */

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct { uint32_t index, value; } state;
        struct { uint32_t index, flags; uint64_t descriptors, used, avail, log; } ring;
        struct { uint32_t count, padding; uint64_t guest, size, user, offset; } table;
    } payload;
} __attribute__((packed));

static void send_message(struct load *load, struct message *message, int fd)
{
    union { char space[CMSG_SPACE(sizeof(int))]; struct cmsghdr header; } control = { .header = {
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct iovec part = { message, 12 + message->size };
    struct msghdr header = { .msg_iov = &part, .msg_iovlen = 1 };

    message->flags = 1;
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
        header.msg_control = &control;
        header.msg_controllen = sizeof(control);
    }
    if (sendmsg(load->socket, &header, MSG_NOSIGNAL) != (ssize_t)part.iov_len) {
        die("sendmsg");
    }
}

static void set_number(struct load *load, uint32_t request, uint64_t number, int fd)
{
    send_message(load, &(struct message){ .request = request, .size = 8, .payload.number = number }, fd);
}

static void set_state(struct load *load, uint32_t request, uint32_t value)
{
    send_message(load, &(struct message){ .request = request, .size = 8, .payload.state = { 0, value } }, -1);
}

static uint64_t get_number(struct load *load, uint32_t request)
{
    struct message answer = { 0 };

    send_message(load, &(struct message){ .request = request, .size = request == GET_VRING_BASE ? 8 : 0 }, -1);
    errno = 0;
    if (recv(load->socket, &answer, 20, MSG_WAITALL) != 20 || answer.request != request || answer.size != 8) {
        die("an answer of the back-end");
    }
    return answer.payload.number;
}

static void connect_to(struct load *load, const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct ucred backend;
    socklen_t size = sizeof(backend);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    load->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (load->socket < 0 || connect(load->socket, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockopt(load->socket, SOL_SOCKET, SO_PEERCRED, &backend, &size) < 0) {
        die(path);
    }
    errno = clock_getcpuclockid(backend.pid, &load->backend_clock);
    if (errno) {
        die("clock_getcpuclockid");
    }
}

static void set_up(struct load *load, bool packed, bool direct)
{
    uint64_t wanted = F_BLK_FLUSH | F_EVENT_IDX | F_PROTOCOL | F_VERSION_1;
    uint64_t features = get_number(load, GET_FEATURES);
    uint64_t ring_bytes = 3 * RING_BYTES, slot_bytes = (load->depth * sizeof(struct slot) + PAGE - 1) & -PAGE;
    int memfd = memfd_create("guest", MFD_CLOEXEC);

    wanted |= (packed ? F_PACKED : 0) | (direct ? 0 : F_INDIRECT);
    errno = ENOTSUP;
    if ((features & wanted & ~F_BLK_FLUSH) != (wanted & ~F_BLK_FLUSH)) {
        die("the back-end's features");
    }
    set_number(load, SET_PROTOCOL_FEATURES, get_number(load, GET_PROTOCOL_FEATURES) & (P_REPLY_ACK | P_CONFIG), -1);
    send_message(load, &(struct message){ .request = SET_OWNER }, -1);
    set_number(load, SET_FEATURES, features & wanted, -1);
    load->memory_bytes = ring_bytes + slot_bytes + load->depth * ((load->size + PAGE - 1) & -PAGE);
    if (memfd < 0 || ftruncate(memfd, load->memory_bytes) < 0) {
        die("memfd");
    }
    load->memory = mmap(NULL, load->memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
    load->slots = (struct slot *)(load->memory + ring_bytes);
    load->data = load->memory + ring_bytes + slot_bytes;
    send_message(load, &(struct message){ .request = SET_MEM_TABLE, .size = 40, .payload.table = {
        1, 0, GUEST_BASE, load->memory_bytes, (uintptr_t)load->memory, 0 } }, memfd);
    ring_init(&load->ring, packed, !direct, QUEUE_SIZE, load->memory);
    set_state(load, SET_VRING_NUM, QUEUE_SIZE);
    set_state(load, SET_VRING_BASE, packed ? 0x80008000 : 0);
    send_message(load, &(struct message){ .request = SET_VRING_ADDR, .size = 40, .payload.ring = {
        0, 0, (uintptr_t)load->ring.table, (uintptr_t)load->ring.device, (uintptr_t)load->ring.driver, 0 } }, -1);
    load->kick = eventfd(0, EFD_CLOEXEC);
    load->call = eventfd(0, EFD_CLOEXEC);
    set_number(load, SET_VRING_KICK, 0, load->kick);
    set_number(load, SET_VRING_CALL, 0, load->call);
    set_state(load, SET_VRING_ENABLE, 1);
}

/* The requests. */

static uint64_t guest_address(const struct load *load, const void *where)
{
    return GUEST_BASE + ((const char *)where - load->memory);
}

static void prepare(struct load *load)
{
    bool to_disk = load->operation == RANDWRITE || load->operation == WRITE_ON;

    for (unsigned i = 0; i < load->depth; i++) {
        struct slot *slot = &load->slots[i];
        char *data = load->data + i * ((load->size + PAGE - 1) & -PAGE);
        struct part payload = { guest_address(load, data), load->size, to_disk ? NEXT : WRITE | NEXT, 2 };

        if (load->operation == ENTROPY) {
            payload.flags = WRITE;
            slot->parts[0] = payload;
            continue;
        }
        slot->header.type = to_disk;
        slot->parts[0] = (struct part){ guest_address(load, &slot->header), sizeof(slot->header), NEXT, 1 };
        slot->parts[1] = payload;
        slot->parts[2] = (struct part){ guest_address(load, &slot->status), 1, WRITE, 0 };
        for (int part = 0; load->ring.packed && part < MAX_PARTS; part++) {
            slot->parts[part].next = slot->parts[part].flags & WRITE; /* where a packed ring has its flags */
            slot->parts[part].flags = 0;
        }
        for (uint64_t page = 0; page < load->size; page += PAGE) {
            memcpy(data + page, load->template, PAGE);
        }
    }
}

static uint64_t *slot_data(const struct load *load, unsigned index)
{
    return (uint64_t *)(load->data + index * ((load->size + PAGE - 1) & -PAGE));
}

static void submit(struct load *load, unsigned index)
{
    struct slot *slot = &load->slots[index];
    uint64_t *data = slot_data(load, index);

    slot->started = now_ns();
    if (load->operation == ENTROPY) {
        *data = 0;
        ring_add(&load->ring, index, slot->parts, 1, guest_address(load, slot->parts));
        return;
    }
    if (load->operation == RANDREAD || load->operation == RANDWRITE) {
        load->random ^= load->random << 13;
        load->random ^= load->random >> 7;
        load->random ^= load->random << 17;
        slot->offset = load->random % (load->disk / load->size) * load->size;
    } else {
        slot->offset = load->position;
        load->position = (load->position + load->size) % load->disk;
    }
    slot->header.sector = slot->offset / 512;
    slot->status = 0xff;
    if (slot->header.type) {
        uint64_t page = slot->offset / PAGE;

        for (uint64_t *words = data; words < data + load->size / 8; words += WORDS, page++) {
            words[0] = words[WORDS - 1] = page << GENERATION_BITS | load->generation;
            load->written[page] = true;
        }
    }
    ring_add(&load->ring, index, slot->parts, MAX_PARTS, guest_address(load, slot->parts));
}

static bool is_page(const struct load *load, const uint64_t *words, uint64_t page, bool whole)
{
    return words[0] >> GENERATION_BITS == page && words[0] == words[WORDS - 1] &&
           (!whole || memcmp(words + 1, load->template + 1, PAGE - 16) == 0);
}

static void check(struct load *load, unsigned index, uint32_t written)
{
    struct slot *slot = &load->slots[index];
    uint64_t *data = slot_data(load, index), page = slot->offset / PAGE;
    bool whole = load->done % CHECK_WHOLE_PAGE_EVERY == 0;

    if (load->operation == ENTROPY) {
        load->bytes += written;
        load->wrong += written == 0 || written > load->size || (written >= 8 && *data == 0);
        return;
    }
    load->bytes += load->size;
    load->wrong += slot->status != 0;
    if (!slot->header.type) {
        for (uint64_t *words = data; words < data + load->size / 8; words += WORDS) {
            load->wrong += !is_page(load, words, page++, whole);
            whole = false;
        }
    }
}

static void reset_figures(struct load *load)
{
    load->done = load->bytes = load->kicks = load->calls = 0;
    memset(load->latencies, 0, LATENCY_STEPS * sizeof(*load->latencies));
}

/* Take what is done; with `again`, put new requests in its place. Returns how many were taken. */
static unsigned reap(struct load *load, bool again)
{
    unsigned taken[QUEUE_SIZE], count = 0;
    uint32_t written;
    int index;

    while (count < load->depth && (index = ring_take(&load->ring, &written)) >= 0) {
        uint64_t step = (now_ns() - load->slots[index].started) / LATENCY_STEP_NS;

        load->latencies[step < LATENCY_STEPS ? step : LATENCY_STEPS - 1]++;
        load->done++;
        check(load, index, written);
        taken[count++] = index;
    }
    if (count && !load->poll) {
        ring_arm(&load->ring); /* as interrupt handlers do, before anybody submits anew */
    }
    for (unsigned i = 0; again && i < count; i++) {
        submit(load, taken[i]);
    }
    return count;
}

static void kick(struct load *load)
{
    if (ring_publish(&load->ring)) {
        load->kicks++;
        if (eventfd_write(load->kick, 1) < 0) {
            die("the kick eventfd");
        }
    }
}

/*
 * Sleep until the back-end calls. If nothing comes for long although requests are in flight, a
 * notification was lost: kick once more, as nobody else does, so that the run goes on, and count it.
 */
static void wait_for_call(struct load *load)
{
    struct pollfd call = { .fd = load->call, .events = POLLIN }; /* back-ends make it non-blocking for us, too */
    int ready = poll(&call, 1, STALL_MS);
    eventfd_t count = 0;

    if (ready == 0) {
        load->stalls++;
        eventfd_write(load->kick, 1);
    } else if (ready < 0 || eventfd_read(load->call, &count) < 0) {
        die("the call eventfd");
    }
    load->calls += count;
}

/* Returns the latency that a percentage of the requests stay below, in microseconds. */
static double percentile(const struct load *load, unsigned percent)
{
    uint64_t seen = 0, step = 0, wanted = (load->done * percent + 99) / 100;

    while (step < LATENCY_STEPS && seen < wanted) {
        seen += load->latencies[step++];
    }
    return step * LATENCY_STEP_NS / 1e3;
}

static void report(const struct load *load)
{
    double seconds = load->ns / 1e9, done = load->done;

    printf("{\"per_second\": %.1f, \"bytes_per_second\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, "
           "\"cpu_us\": %.3f, \"kicks\": %.4f, \"calls\": %.4f, \"stalls\": %" PRIu64 ", "
           "\"wrong\": %" PRIu64 "}\n",
           done / seconds, load->bytes / seconds, percentile(load, 50), percentile(load, 99),
           load->cpu_ns / 1e3 / done, load->kicks / done, load->calls / done, load->stalls, load->wrong);
}

/* Keep requests in flight for `ns` nanoseconds; return with none in flight. */
static void run_for(struct load *load, uint64_t ns)
{
    uint64_t start = now_ns(), cpu = clock_ns(load->backend_clock);
    unsigned in_flight = load->depth;

    reset_figures(load);
    for (unsigned i = 0; i < load->depth; i++) {
        submit(load, i);
    }
    kick(load);
    while (now_ns() - start < ns) {
        if (!reap(load, true) && !load->poll) {
            wait_for_call(load);
        }
        kick(load);
    }
    while ((in_flight -= reap(load, false)) > 0) {
        if (!load->poll) {
            wait_for_call(load);
        }
    }
    load->ns = now_ns() - start;
    load->cpu_ns = clock_ns(load->backend_clock) - cpu;
}

/* Look up in the file what was written, and that nothing else was. */
static uint64_t count_wrong_pages(const struct load *load, int file)
{
    uint64_t *disk = mmap(NULL, load->disk, PROT_READ, MAP_SHARED, file, 0), wrong = 0;

    if (disk == MAP_FAILED) {
        die("the disk's file");
    }
    for (uint64_t page = 0; page < load->disk / PAGE; page++) {
        const uint64_t *words = disk + page * WORDS;

        bool is_new = (words[0] & GENERATIONS) == load->generation;

        wrong += !is_page(load, words, page, true) || is_new != load->written[page];
    }
    return wrong;
}

static void main_source(char **argv)
{
    static char buffer[1 << 20];
    size_t size = atoi(argv[1]);
    uint64_t start = now_ns(), end = start + atof(argv[2]) * 1e9, now, done = 0, bytes = 0;
    int fd = open(argv[0], O_RDONLY | O_CLOEXEC);

    while ((now = now_ns()) < end) {
        ssize_t count = read(fd, buffer, size < sizeof(buffer) ? size : sizeof(buffer));

        if (count <= 0) {
            die(argv[0]);
        }
        done++;
        bytes += count;
    }
    printf("{\"per_second\": %.1f, \"bytes_per_second\": %.1f}\n", done * 1e9 / (now - start),
           bytes * 1e9 / (now - start));
}

int main(int argc, char **argv)
{
    struct load load = { .random = 88172645463325252ull, .latencies = calloc(LATENCY_STEPS, sizeof(uint32_t)) };
    bool packed = false, direct = false;
    struct stat status = { 0 };
    int option, file = -1;

    while ((option = getopt(argc, argv, "dkp")) != -1) {
        direct |= option == 'd';
        packed |= option == 'k';
        load.poll |= option == 'p';
    }
    argv += optind;
    argc -= optind;
    if (argc == 4 && strcmp(argv[0], "source") == 0) {
        main_source(argv + 1);
        return 0;
    }
    while (argc == 6 && load.operation <= ENTROPY && strcmp(argv[2], names[load.operation])) {
        load.operation++;
    }
    load.size = argc == 6 ? atoll(argv[3]) : 0;
    load.depth = argc == 6 ? atoi(argv[4]) : 0;
    if (load.operation > ENTROPY || !load.size || !load.depth || load.depth > QUEUE_SIZE / MAX_PARTS ||
        (packed && direct)) {
        fprintf(stderr, "usage: vhost_load [-dkp] SOCKET FILE randread|randwrite|read|write|entropy SIZE DEPTH"
                        " SECONDS | vhost_load source FILE SIZE SECONDS; DEPTH is at most %d, -k without -d\n",
                QUEUE_SIZE / MAX_PARTS);
        return 1;
    }
    if (load.operation != ENTROPY) {
        file = open(argv[1], O_RDONLY | O_CLOEXEC);
        errno = 0;
        if (file < 0 || fstat(file, &status) < 0 || load.size % PAGE || status.st_size % load.size) {
            die(argv[1]);
        }
    }
    load.disk = status.st_size;
    load.written = calloc(load.disk / PAGE + 1, sizeof(*load.written));
    load.generation = now_ns() / 1000 & GENERATIONS;
    for (uint64_t i = 0; i < WORDS; i++) {
        load.template[i] = i * 0x9e3779b97f4a7c15ull;
    }
    connect_to(&load, argv[0]);
    set_up(&load, packed, direct);
    prepare(&load);
    run_for(&load, WARM_UP_NS);
    run_for(&load, atof(argv[5]) * 1e9);
    get_number(&load, GET_VRING_BASE);
    if (load.slots[0].header.type) {
        load.wrong += count_wrong_pages(&load, file);
    }
    report(&load);
    return 0;
}
