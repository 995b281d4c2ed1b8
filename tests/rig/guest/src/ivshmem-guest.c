/*
 * ivshmem-guest: an ivshmem device from Linux user space, without a driver of its own.
 *
 *   ivshmem-guest sysfs ACTION...    memory and doorbell; no interrupts
 *   ivshmem-guest vfio ACTION...     interrupts too; the device is bound to vfio-pci
 *
 * Actions, done in order:
 *   write OFFSET TEXT    write TEXT and a zero byte into the shared memory
 *   read OFFSET          print the text at OFFSET
 *   ring PEER VECTOR     ring the doorbell
 *   wait VECTOR          wait until VECTOR's interrupt has come
 *   interrupts           print what /proc/interrupts counts for vfio
 *
 * Offsets are in bytes. The first line printed, "id=... memory=... vectors=...", tells that the
 * device is set up: from then on interrupts are counted, also those that come before their "wait".
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PCI_DEVICES "/sys/bus/pci/devices"
#define MAX_VECTORS 2048

/* BAR0, QEMU's docs/specs/ivshmem-spec: offsets in bytes */
#define REGISTER_IV_POSITION 8
#define REGISTER_DOORBELL 12

struct device {
    char address[32];               /* domain:bus:device.function */
    volatile uint8_t *registers;    /* BAR0; NULL with vfio, where file accesses reach it */
    volatile uint8_t *memory;       /* BAR2 */
    size_t memory_size;
    int vfio;                       /* vfio's file of the device */
    uint64_t registers_offset;      /* of BAR0 in that file */
    unsigned int vectors;
    int events[MAX_VECTORS];        /* an eventfd for each vector */
};

/* Ends the program with one line that names the cause. */
static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list arguments;

    fputs("ivshmem-guest: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static int open_or_fail(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);

    if (fd < 0)
        fail("cannot open %s: %s", path, strerror(errno));
    return fd;
}

/* The number in a sysfs file, -1 if there is none. */
static long read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    long number;

    if (!file)
        return -1;
    if (fscanf(file, "%li", &number) != 1)
        number = -1;
    fclose(file);
    return number;
}

static void find_device(struct device *device)
{
    DIR *directory = opendir(PCI_DEVICES);
    struct dirent *entry;
    char path[128];

    while (directory && (entry = readdir(directory))) {
        snprintf(path, sizeof path, PCI_DEVICES "/%.31s/vendor", entry->d_name);
        if (read_number(path) != 0x1af4)
            continue;
        snprintf(path, sizeof path, PCI_DEVICES "/%.31s/device", entry->d_name);
        if (read_number(path) != 0x1110)
            continue;
        snprintf(device->address, sizeof device->address, "%.31s", entry->d_name);
        closedir(directory);
        return;
    }
    fail("no ivshmem device (1af4:1110) in " PCI_DEVICES);
}

/* --- sysfs --- */

/* Where BAR `bar` begins in physical memory, and how many bytes it has. */
static void find_bar(const struct device *device, int bar, uint64_t *start, size_t *size)
{
    char path[128];
    unsigned long long first = 0, last = 0;
    FILE *file;

    snprintf(path, sizeof path, PCI_DEVICES "/%s/resource", device->address);
    file = fopen(path, "re");
    if (!file)
        fail("cannot open %s: %s", path, strerror(errno));
    for (int line = 0; line <= bar; line++)
        if (fscanf(file, "%llx %llx %*x", &first, &last) != 2)
            fail("cannot read BAR%d in %s", bar, path);
    fclose(file);
    *start = first;
    *size = last - first + 1;
}

static volatile uint8_t *map_sysfs_bar(const struct device *device, int bar, size_t *size)
{
    /* A BAR smaller than a page may begin inside one; mappings cannot. */
    size_t page = sysconf(_SC_PAGESIZE), within;
    uint64_t start;
    uint8_t *mapping;
    char path[128];
    int fd;

    find_bar(device, bar, &start, size);
    within = start % page;
    snprintf(path, sizeof path, PCI_DEVICES "/%s/resource%d", device->address, bar);
    fd = open_or_fail(path, O_RDWR);
    mapping = mmap(NULL, within + *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED)
        fail("cannot map %s: %s (in use through vfio?)", path, strerror(errno));
    close(fd);
    return mapping + within;
}

static void open_sysfs(struct device *device)
{
    char path[128];
    size_t size;
    int fd;

    snprintf(path, sizeof path, PCI_DEVICES "/%s/enable", device->address);
    if (read_number(path) == 0) {
        fd = open_or_fail(path, O_WRONLY);
        if (write(fd, "1", 1) != 1)
            fail("cannot enable %s: %s (unbind its driver)", device->address, strerror(errno));
        close(fd);
    }
    device->registers = map_sysfs_bar(device, 0, &size);
    device->memory = map_sysfs_bar(device, 2, &device->memory_size);
}

/* --- vfio --- */

static int open_group(const struct device *device)
{
    struct vfio_group_status status = { .argsz = sizeof status };
    char path[128], target[256];
    ssize_t length;
    int group;

    snprintf(path, sizeof path, PCI_DEVICES "/%s/iommu_group", device->address);
    length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        fail("%s has no IOMMU group: give the machine an IOMMU, and Linux intel_iommu=on", device->address);
    target[length] = 0;
    snprintf(path, sizeof path, "/dev/vfio/%.100s", strrchr(target, '/') + 1);
    group = open(path, O_RDWR | O_CLOEXEC);
    if (group < 0)
        fail("cannot open %s: %s (is %s bound to vfio-pci?)", path, strerror(errno), device->address);
    if (ioctl(group, VFIO_GROUP_GET_STATUS, &status) || !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
        fail("%s: a device of this IOMMU group is not bound to vfio-pci", path);
    return group;
}

static struct vfio_region_info find_region(const struct device *device, unsigned int index)
{
    struct vfio_region_info region = { .argsz = sizeof region, .index = index };

    if (ioctl(device->vfio, VFIO_DEVICE_GET_REGION_INFO, &region))
        fail("vfio region %u: %s", index, strerror(errno));
    return region;
}

/* A device that is no bus master sends no MSI-X messages (PCI Local Bus 3.0, 6.8.3). */
static void become_bus_master(const struct device *device)
{
    off_t offset = find_region(device, VFIO_PCI_CONFIG_REGION_INDEX).offset + PCI_COMMAND;
    uint16_t command;

    if (pread(device->vfio, &command, sizeof command, offset) != sizeof command)
        fail("cannot read the PCI command register: %s", strerror(errno));
    command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    if (pwrite(device->vfio, &command, sizeof command, offset) != sizeof command)
        fail("cannot write the PCI command register: %s", strerror(errno));
}

static void enable_interrupts(struct device *device)
{
    struct vfio_irq_info info = { .argsz = sizeof info, .index = VFIO_PCI_MSIX_IRQ_INDEX };
    struct vfio_irq_set *set;
    size_t size;

    if (ioctl(device->vfio, VFIO_DEVICE_GET_IRQ_INFO, &info) || !info.count || info.count > MAX_VECTORS)
        fail("%s offers no usable MSI-X", device->address);
    device->vectors = info.count;
    for (unsigned int vector = 0; vector < info.count; vector++) {
        device->events[vector] = eventfd(0, EFD_CLOEXEC);
        if (device->events[vector] < 0)
            fail("eventfd: %s", strerror(errno));
    }
    size = sizeof *set + info.count * sizeof device->events[0];
    set = calloc(1, size);
    if (!set)
        fail("out of memory");
    set->argsz = size;
    set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set->index = VFIO_PCI_MSIX_IRQ_INDEX;
    set->count = info.count;
    memcpy(set->data, device->events, info.count * sizeof device->events[0]);
    if (ioctl(device->vfio, VFIO_DEVICE_SET_IRQS, set))
        fail("cannot enable MSI-X: %s", strerror(errno));
    free(set);
}

static void open_vfio(struct device *device)
{
    int container = open_or_fail("/dev/vfio/vfio", O_RDWR);
    int group = open_group(device);
    struct vfio_region_info memory;
    void *mapping;

    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container))
        fail("cannot use the IOMMU group: %s", strerror(errno));
    if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
        fail("cannot use the IOMMU: %s (vfio_iommu_type1 loaded? without interrupt remapping it wants "
             "allow_unsafe_interrupts=1)", strerror(errno));
    device->vfio = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, device->address);
    if (device->vfio < 0)
        fail("cannot open %s through vfio: %s", device->address, strerror(errno));

    device->registers_offset = find_region(device, VFIO_PCI_BAR0_REGION_INDEX).offset;
    memory = find_region(device, VFIO_PCI_BAR2_REGION_INDEX);
    mapping = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_SHARED, device->vfio, memory.offset);
    if (mapping == MAP_FAILED)
        fail("cannot map BAR2 through vfio: %s", strerror(errno));
    device->memory = mapping;
    device->memory_size = memory.size;
    become_bus_master(device);
    enable_interrupts(device);
}

/* --- registers --- */

static uint32_t read_register(const struct device *device, unsigned int offset)
{
    uint32_t value;

    if (device->registers)
        return *(volatile uint32_t *)(device->registers + offset);
    if (pread(device->vfio, &value, sizeof value, device->registers_offset + offset) != sizeof value)
        fail("cannot read a register: %s", strerror(errno));
    return value;
}

static void write_register(const struct device *device, unsigned int offset, uint32_t value)
{
    if (device->registers)
        *(volatile uint32_t *)(device->registers + offset) = value;
    else if (pwrite(device->vfio, &value, sizeof value, device->registers_offset + offset) != sizeof value)
        fail("cannot write a register: %s", strerror(errno));
}

/* --- actions --- */

static unsigned long number(const char *text, unsigned long limit)
{
    char *end;
    unsigned long value = strtoul(text, &end, 0);

    if (*end || end == text || value >= limit)
        fail("%s: a number below %lu is wanted", text, limit);
    return value;
}

static void write_text(struct device *device, char **arguments)
{
    size_t offset = number(arguments[0], device->memory_size);
    size_t length = strlen(arguments[1]) + 1;

    if (length > device->memory_size - offset)
        fail("the text does not fit into the shared memory at %s", arguments[0]);
    for (size_t i = 0; i < length; i++)
        device->memory[offset + i] = arguments[1][i];
}

static void read_text(struct device *device, char **arguments)
{
    size_t offset = number(arguments[0], device->memory_size);

    for (; offset < device->memory_size && device->memory[offset]; offset++)
        putchar(device->memory[offset]);
    putchar('\n');
}

static void ring(struct device *device, char **arguments)
{
    uint32_t peer = number(arguments[0], 0x10000), vector = number(arguments[1], 0x10000);

    write_register(device, REGISTER_DOORBELL, peer << 16 | vector);
    printf("rang peer=%u vector=%u\n", peer, vector);
}

static void wait_for(struct device *device, char **arguments)
{
    unsigned long vector;
    uint64_t count;

    if (!device->vectors)
        fail("interrupts need vfio");
    vector = number(arguments[0], device->vectors);
    if (read(device->events[vector], &count, sizeof count) != sizeof count)
        fail("eventfd: %s", strerror(errno));
    printf("interrupt vector=%lu count=%llu\n", vector, (unsigned long long)count);
}

static void print_interrupts(struct device *device, char **arguments)
{
    FILE *file = fopen("/proc/interrupts", "re");
    char line[4096];

    (void)device;
    (void)arguments;
    if (!file)
        fail("cannot open /proc/interrupts: %s", strerror(errno));
    while (fgets(line, sizeof line, file))
        if (strstr(line, "vfio-msix"))
            fputs(line, stdout);
    fclose(file);
}

static const struct action {
    const char *name;
    int arguments;
    void (*act)(struct device *device, char **arguments);
} actions[] = {
    { "write", 2, write_text },
    { "read", 1, read_text },
    { "ring", 2, ring },
    { "wait", 1, wait_for },
    { "interrupts", 0, print_interrupts },
};

static const struct action *find_action(const char *name, int arguments)
{
    for (size_t i = 0; i < sizeof actions / sizeof actions[0]; i++)
        if (!strcmp(name, actions[i].name) && actions[i].arguments <= arguments)
            return &actions[i];
    fail("%s: no such action, or too few arguments", name);
}

int main(int argc, char **argv)
{
    static struct device device;
    int vfio;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2 || (strcmp(argv[1], "sysfs") && strcmp(argv[1], "vfio")))
        fail("usage: ivshmem-guest sysfs|vfio "
             "[write OFFSET TEXT] [read OFFSET] [ring PEER VECTOR] [wait VECTOR] [interrupts]");
    vfio = !strcmp(argv[1], "vfio");
    find_device(&device);
    if (vfio)
        open_vfio(&device);
    else
        open_sysfs(&device);
    printf("id=%u memory=%zu", read_register(&device, REGISTER_IV_POSITION), device.memory_size);
    if (vfio)
        printf(" vectors=%u", device.vectors);
    putchar('\n');
    for (int i = 2; i < argc;) {
        const struct action *action = find_action(argv[i], argc - i - 1);

        action->act(&device, argv + i + 1);
        i += 1 + action->arguments;
    }
    return 0;
}
