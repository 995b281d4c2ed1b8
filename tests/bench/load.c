/*
 * Load on an ivshmem server, and a doorbell between two processes, each timed.
 *
 *   load join PATH CLIENTS VECTORS QUIET_MS
 *       Connects CLIENTS clients as fast as the server accepts them, reads every message as it
 *       comes and checks it. The server must be a fresh one: ids are expected to be 0..CLIENTS-1.
 *       Stops when every client has everything, or when nothing has come for QUIET_MS. Prints one
 *       line of JSON, then holds the connections until its standard input ends.
 *   load doorbell ROUNDS
 *       Two processes ring each other through eventfds; prints the round-trip times as JSON.
 *
 * Exit status: 0 if the report was printed, whatever it says; 1 if the machine would not do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BATCH 256
#define GREETING 3 /* version, own id, shared memory */

struct client {
    int sock;
    int64_t id;
    uint64_t received;
    uint16_t *seen; /* messages with an fd, by peer id */
};

struct load {
    unsigned clients, vectors, connected, closed;
    bool refused; /* the server takes no more connections */
    uint64_t received, wrong;
    char fault[160]; /* the first thing that went wrong */
    struct client *client;
    int epoll;
};

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void fault(struct load *load, const char *format, ...)
{
    va_list args;

    load->wrong++;
    if (load->fault[0]) {
        return;
    }
    va_start(args, format);
    vsnprintf(load->fault, sizeof(load->fault), format, args);
    va_end(args);
}

/* A client's messages come in a fixed order, and each peer's vectors exactly once. */
static void check(struct load *load, struct client *client, int64_t value, bool has_fd)
{
    switch (client->received++) {
    case 0:
        if (value != 0 || has_fd) {
            fault(load, "protocol version %" PRId64, value);
        }
        break;
    case 1:
        client->id = value;
        if (value < 0 || value >= load->clients || has_fd) {
            fault(load, "own id %" PRId64, value);
        }
        break;
    case 2:
        if (value != -1 || !has_fd) {
            fault(load, "client %" PRId64 ": no shared memory", client->id);
        }
        break;
    default:
        if (value < 0 || value >= load->clients || !has_fd) {
            fault(load, "client %" PRId64 ": peer %" PRId64 " %s", client->id, value,
                  has_fd ? "unknown" : "without an fd");
        } else if (++client->seen[value] > load->vectors) {
            fault(load, "client %" PRId64 ": peer %" PRId64 " has a vector too many", client->id, value);
        }
    }
}

static void server_gone(struct load *load, struct client *client)
{
    epoll_ctl(load->epoll, EPOLL_CTL_DEL, client->sock, NULL);
    close(client->sock);
    client->sock = -1;
    load->closed++;
}

/* Read what there is, 8 bytes and at most one fd a message. */
static void drain(struct load *load, struct client *client)
{
    static union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control[BATCH];
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    static int64_t values[BATCH];
    int count;

    do {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){ &values[i], sizeof(values[i]) };
            messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1, .msg_control = &control[i],
                                                   .msg_controllen = CMSG_LEN(sizeof(int)) };
        }
        count = recvmmsg(client->sock, messages, BATCH, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
        if (count < 0 && errno != EAGAIN) {
            server_gone(load, client);
        }
        for (int i = 0; i < count; i++) {
            struct cmsghdr *rights = CMSG_FIRSTHDR(&messages[i].msg_hdr);

            if (messages[i].msg_len == 0) {
                server_gone(load, client);
                return;
            }
            if (messages[i].msg_len != sizeof(int64_t) || messages[i].msg_hdr.msg_flags & MSG_CTRUNC) {
                fault(load, "a message of %u bytes%s", messages[i].msg_len,
                      messages[i].msg_hdr.msg_flags & MSG_CTRUNC ? " with an fd too many" : "");
            }
            check(load, client, values[i], rights != NULL);
            load->received++;
            if (rights != NULL) {
                close(*(int *)CMSG_DATA(rights));
            }
        }
    } while (count == BATCH);
}

/* Start one more connection, unless the server has as many waiting as it takes. */
static bool connect_one(struct load *load, const struct sockaddr_un *address)
{
    struct client *client = &load->client[load->connected];
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = client };

    client->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (client->sock < 0) {
        die("socket");
    }
    if (connect(client->sock, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        if (errno != EAGAIN) {
            fault(load, "client %u: connect: %s", load->connected, strerror(errno));
            load->refused = true;
        }
        close(client->sock);
        return false;
    }
    if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, client->sock, &event) < 0) {
        die("epoll_ctl");
    }
    load->connected++;
    return true;
}

static bool connecting(const struct load *load)
{
    return load->connected < load->clients && !load->refused;
}

static bool alive(const struct load *load)
{
    return connecting(load) || load->closed < load->connected;
}

/* Returns the time from the first connect to the last message. */
static uint64_t join(struct load *load, const char *path, uint64_t expected, uint64_t quiet_ns)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct epoll_event events[BATCH];
    uint64_t start = now_ns(), last = start;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    while (load->received < expected && alive(load) && now_ns() - last < quiet_ns) {
        uint64_t before = load->received;

        while (connecting(load) && connect_one(load, &address)) {
        }
        int count = epoll_wait(load->epoll, events, BATCH, connecting(load) ? 1 : 100);
        for (int i = 0; i < count; i++) {
            drain(load, events[i].data.ptr);
        }
        if (load->received > before) {
            last = now_ns();
        }
    }
    return last - start;
}

static void raise_fd_limit(unsigned wanted)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        die("getrlimit");
    }
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) {
        die("setrlimit");
    }
    if (limit.rlim_cur < wanted) {
        fprintf(stderr, "load: %u open files are needed, the hard limit is %ju: raise it (ulimit -Hn)\n", wanted,
                (uintmax_t)limit.rlim_cur);
        exit(1);
    }
}

static void main_join(char **argv)
{
    struct load load = { .clients = atoi(argv[1]), .vectors = atoi(argv[2]) };
    uint64_t expected = load.clients * (GREETING + (uint64_t)load.clients * load.vectors), ns;
    char byte;

    raise_fd_limit(load.clients + BATCH + 16);
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    load.client = calloc(load.clients, sizeof(*load.client));
    for (unsigned i = 0; i < load.clients; i++) {
        load.client[i].seen = calloc(load.clients, sizeof(*load.client[i].seen));
    }
    ns = join(&load, argv[0], expected, atoi(argv[3]) * 1000000ull);
    printf("{\"connected\": %u, \"closed\": %u, \"expected\": %" PRIu64 ", \"received\": %" PRIu64
           ", \"wrong\": %" PRIu64 ", \"fault\": \"%s\", \"seconds\": %.9f}\n",
           load.connected, load.closed, expected, load.received, load.wrong, load.fault, ns / 1e9);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
}

static void ring(int eventfd)
{
    if (eventfd_write(eventfd, 1) < 0) {
        die("eventfd_write");
    }
}

static void wait_for_ring(int eventfd)
{
    eventfd_t count;

    if (eventfd_read(eventfd, &count) < 0) {
        die("eventfd_read");
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void main_doorbell(char **argv)
{
    int rounds = atoi(argv[0]), ping = eventfd(0, EFD_CLOEXEC), pong = eventfd(0, EFD_CLOEXEC);
    uint64_t *times = calloc(rounds, sizeof(*times));
    pid_t child = fork();

    for (int i = 0; i < rounds; i++) {
        uint64_t start = now_ns();

        if (child == 0) {
            wait_for_ring(ping);
            ring(pong);
        } else {
            ring(ping);
            wait_for_ring(pong);
        }
        times[i] = now_ns() - start;
    }
    if (child == 0) {
        exit(0);
    }
    waitpid(child, NULL, 0);
    qsort(times, rounds, sizeof(*times), compare);
    printf("{\"median_us\": %.3f, \"p99_us\": %.3f}\n", times[rounds / 2] / 1e3, times[rounds * 99 / 100] / 1e3);
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "join") == 0) {
        main_join(argv + 2);
    } else if (argc == 3 && strcmp(argv[1], "doorbell") == 0) {
        main_doorbell(argv + 2);
    } else {
        fprintf(stderr, "usage: load join PATH CLIENTS VECTORS QUIET_MS | load doorbell ROUNDS\n");
        return 1;
    }
    return 0;
}
