// Streams of bytes over AF_VSOCK in a guest, and over AF_UNIX as their other end on the host.
//
//   vsock-load connect vsock CID PORT ACTION...
//   vsock-load listen vsock PORT ACTION...         accepts one connection; with "echo", COUNT
//   vsock-load connect unix PATH ACTION...
//   vsock-load connect guest PATH PORT ACTION...   by "CONNECT PORT" at a --uds-path
//   vsock-load listen unix PATH ACTION...
//
// Actions:
//   send BYTES SEED     send so many pseudo-random bytes, then the end; wait for the peer's end
//   receive             receive until the end
//   both BYTES SEED     do both at once
//   echo COUNT AT_ONCE  listen only: COUNT connections, AT_ONCE of them at a time: send back what comes on them
//   many COUNT AT_ONCE  connect only: the other end of echo
//   steps STEP...       wN write N bytes, rN read N bytes, e read the end, E read until there is an end or an
//                       error, F write until it fails, W R B shut down writing, reading, both, c close
//
// send, receive and both print the bytes and a checksum of each direction; steps prints what each returned.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { BLOCK = 65536, MOST = 4096, MESSAGE = 200, PATIENCE = 60 };

static char **words; // of the command line, the next one first

static void die(const char *what)
{
    printf("%s: %s\n", what, strerrorname_np(errno) ? strerrorname_np(errno) : "?");
    exit(1);
}

static char *next_word(void)
{
    if (!*words) {
        puts("usage: see the source");
        exit(2);
    }
    return *words++;
}

static uint64_t next_number(void)
{
    return strtoull(next_word(), NULL, 0);
}

// Where the other end is.
struct place {
    union {
        struct sockaddr any;
        struct sockaddr_vm vm;
        struct sockaddr_un un;
    };
    socklen_t size;
    long guest_port; // to be asked for at a --uds-path, or -1
};

static struct place next_place(int listens)
{
    struct place place = { .guest_port = -1 };
    char *family = next_word();
    if (!strcmp(family, "vsock")) {
        place.vm.svm_family = AF_VSOCK;
        place.vm.svm_cid = listens ? VMADDR_CID_ANY : (unsigned)next_number();
        place.vm.svm_port = (unsigned)next_number();
        place.size = sizeof place.vm;
        return place;
    }
    place.un.sun_family = AF_UNIX;
    strncpy(place.un.sun_path, next_word(), sizeof place.un.sun_path - 1);
    place.size = sizeof place.un;
    if (!strcmp(family, "guest"))
        place.guest_port = (long)next_number();
    return place;
}

static void write_all(int fd, const void *data, size_t size)
{
    for (const char *rest = data; size;) {
        ssize_t count = write(fd, rest, size);
        if (count < 0)
            die("write");
        rest += count;
        size -= (size_t)count;
    }
}

static void ask_for(int fd, long port)
{
    char line[64];
    write_all(fd, line, (size_t)snprintf(line, sizeof line, "CONNECT %ld\n", port));
    size_t size = 0;
    do {
        if (size == sizeof line - 1 || read(fd, line + size, 1) != 1) {
            puts("the guest does not accept it");
            exit(1);
        }
    } while (line[size++] != '\n');
    line[size] = 0;
    if (strncmp(line, "OK ", 3)) {
        printf("not OK: %s", line);
        exit(1);
    }
}

static int connect_to(const struct place *place)
{
    int fd = socket(place->any.sa_family, SOCK_STREAM, 0);
    if (fd < 0)
        die("socket");
    struct timeval patience = { .tv_sec = PATIENCE }; // in place of Linux's two seconds
    if (place->any.sa_family == AF_VSOCK &&
        setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &patience, sizeof patience))
        die("setsockopt");
    while (connect(fd, &place->any, place->size))
        if (errno == EAGAIN) // a UNIX socket whose queue is full
            usleep(1000);
        else
            die("connect");
    if (place->guest_port >= 0)
        ask_for(fd, place->guest_port);
    return fd;
}

static int listen_at(const struct place *place)
{
    int fd = socket(place->any.sa_family, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, &place->any, place->size) || listen(fd, MOST))
        die("listen");
    puts("listening");
    fflush(stdout);
    return fd;
}

// One direction of a stream: how many bytes went through it, and what they were.
struct flow {
    uint64_t bytes, checksum;
};

static void add(struct flow *flow, const unsigned char *data, size_t size)
{
    uint64_t word;
    for (size_t at = 0; at < size; at += sizeof word) {
        word = 0;
        memcpy(&word, data + at, size - at < sizeof word ? size - at : sizeof word);
        flow->checksum = (flow->checksum ^ word) * 0x100000001b3;
        flow->checksum ^= flow->checksum >> 29;
    }
    flow->bytes += size;
}

static struct flow send_bytes(int fd, uint64_t bytes, uint64_t seed)
{
    static uint64_t block[BLOCK / sizeof(uint64_t)];
    struct flow flow = { 0 };
    while (flow.bytes < bytes) {
        size_t size = bytes - flow.bytes < BLOCK ? bytes - flow.bytes : BLOCK;
        for (size_t at = 0; at < (size + 7) / 8; at++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            block[at] = seed;
        }
        add(&flow, (unsigned char *)block, size);
        write_all(fd, block, size);
    }
    if (shutdown(fd, SHUT_WR))
        die("shutdown");
    return flow;
}

static struct flow receive_bytes(int fd)
{
    static unsigned char block[BLOCK];
    struct flow flow = { 0 };
    size_t held = 0; // the checksum is over blocks, however the bytes come
    ssize_t count;
    while ((count = read(fd, block + held, BLOCK - held)) > 0) {
        held += (size_t)count;
        if (held == BLOCK) {
            add(&flow, block, held);
            held = 0;
        }
    }
    if (count < 0)
        die("read");
    add(&flow, block, held);
    return flow;
}

static void print_flow(const char *what, struct flow flow)
{
    printf("%s %llu %016llx\n", what, (unsigned long long)flow.bytes, (unsigned long long)flow.checksum);
    fflush(stdout);
}

static void send_and_receive(int fd)
{
    uint64_t bytes = next_number(), seed = next_number();
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (!child) {
        print_flow("sent", send_bytes(fd, bytes, seed));
        exit(0);
    }
    struct flow flow = receive_bytes(fd);
    int status;
    if (waitpid(child, &status, 0) < 0 || status)
        exit(1);
    print_flow("received", flow);
}

// A stream whose bytes are sent back.
struct echo {
    int fd;
    size_t size;
    char data[BLOCK];
};

static int echo_some(struct echo *echo)
{
    ssize_t count = read(echo->fd, echo->data, BLOCK);
    if (count < 0)
        die("read");
    if (count)
        write_all(echo->fd, echo->data, (size_t)count);
    return count > 0;
}

static void accept_and_watch(int listener, int watch)
{
    struct echo *echo = malloc(sizeof *echo);
    struct pollfd incoming = { .fd = listener, .events = POLLIN };
    if (poll(&incoming, 1, PATIENCE * 1000) != 1) {
        puts("no more connections come");
        exit(1);
    }
    echo->fd = accept(listener, NULL, NULL);
    if (echo->fd < 0)
        die("accept");
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = echo };
    epoll_ctl(watch, EPOLL_CTL_ADD, echo->fd, &event);
}

static void echo_until_ended(int watch, uint64_t open)
{
    struct epoll_event event;
    while (open) {
        if (epoll_wait(watch, &event, 1, PATIENCE * 1000) != 1) {
            printf("nothing happens; %llu are open\n", (unsigned long long)open);
            exit(1);
        }
        struct echo *echo = event.data.ptr;
        if (echo_some(echo))
            continue;
        close(echo->fd);
        free(echo);
        open--;
    }
}

// Nothing is sent back before as many as shall be open at once are open: else the first could end before the
// last comes.
static void echo(int listener)
{
    uint64_t count = next_number(), at_once = next_number();
    int watch = epoll_create1(0);
    for (uint64_t first = 0; first < count; first += at_once) {
        uint64_t some = count - first < at_once ? count - first : at_once;
        for (uint64_t at = 0; at < some; at++)
            accept_and_watch(listener, watch);
        echo_until_ended(watch, some);
    }
    printf("echoed %llu\n", (unsigned long long)count);
}

static void one_of_many(int fd, uint64_t number, int reads)
{
    char sent[MESSAGE], got[MESSAGE];
    for (int at = 0; at < MESSAGE; at++)
        sent[at] = (char)(number * 31 + (uint64_t)at * number);
    if (!reads) {
        write_all(fd, sent, MESSAGE);
        return;
    }
    for (ssize_t at = 0, count; at < MESSAGE; at += count)
        if ((count = read(fd, got + at, (size_t)(MESSAGE - at))) <= 0)
            die("the echo ended");
    if (memcmp(sent, got, MESSAGE)) {
        puts("the echo is another one");
        exit(1);
    }
    close(fd);
}

static void many(const struct place *place)
{
    static int fds[MOST];
    uint64_t count = next_number(), at_once = next_number();
    for (uint64_t first = 0; first < count; first += at_once) {
        uint64_t some = count - first < at_once ? count - first : at_once;
        for (uint64_t at = 0; at < some; at++)
            one_of_many(fds[at] = connect_to(place), first + at, 0);
        for (uint64_t at = 0; at < some; at++)
            one_of_many(fds[at], first + at, 1);
    }
    printf("connected %llu\n", (unsigned long long)count);
}

static void print_step(const char *step, ssize_t result)
{
    if (result < 0)
        printf("%s=%s\n", step, strerrorname_np(errno));
    else
        printf("%s=%zd\n", step, result);
    fflush(stdout);
}

static ssize_t read_up_to(int fd, size_t size)
{
    static char data[BLOCK];
    size_t held = 0;
    while (held < size) {
        ssize_t count = read(fd, data, size - held < BLOCK ? size - held : BLOCK);
        if (count < 0)
            return -1;
        if (!count)
            break;
        held += (size_t)count;
    }
    return (ssize_t)held;
}

static ssize_t take_step(int fd, const char *step)
{
    static char data[BLOCK];
    char byte;
    switch (step[0]) {
    case 'w':
        return write(fd, data, (size_t)atoi(step + 1));
    case 'r':
        return read_up_to(fd, (size_t)atoi(step + 1));
    case 'e':
        return read(fd, &byte, 1);
    case 'W':
        return shutdown(fd, SHUT_WR);
    case 'R':
        return shutdown(fd, SHUT_RD);
    case 'B':
        return shutdown(fd, SHUT_RDWR);
    case 'E':
        return read_up_to(fd, SIZE_MAX);
    case 'F':
        for (int tries = 0; tries < PATIENCE * 1000; tries++) {
            if (write(fd, data, 1) < 0)
                return -1;
            usleep(1000);
        }
        return 0;
    default:
        return close(fd);
    }
}

static void take_steps(int fd)
{
    while (*words) {
        const char *step = *words++;
        print_step(step, take_step(fd, step));
    }
}

static void act(int fd, const char *action)
{
    if (!strcmp(action, "send")) {
        uint64_t bytes = next_number(), seed = next_number();
        struct flow flow = send_bytes(fd, bytes, seed);
        receive_bytes(fd);
        print_flow("sent", flow);
    } else if (!strcmp(action, "receive"))
        print_flow("received", receive_bytes(fd));
    else if (!strcmp(action, "both"))
        send_and_receive(fd);
    else
        take_steps(fd);
}

int main(int argc, char **argv)
{
    (void)argc;
    signal(SIGPIPE, SIG_IGN);
    words = argv + 1;
    int listens = !strcmp(next_word(), "listen");
    struct place place = next_place(listens);
    const char *action = next_word();
    if (listens) {
        int listener = listen_at(&place);
        if (!strcmp(action, "echo"))
            echo(listener);
        else
            act(accept(listener, NULL, NULL), action);
    } else if (!strcmp(action, "many"))
        many(&place);
    else
        act(connect_to(&place), action);
    return 0;
}
