/*
 * The driver's side of a virtqueue, split or packed, with EVENT_IDX (virtio 1.3, sections 2.7 and
 * 2.8). A request is one chain that is named by a slot number: one indirect descriptor, or in a
 * split ring without INDIRECT_DESC as many descriptors as MAX_PARTS in a row.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MAX_PARTS 3
#define RING_BYTES 65536 /* for each of the three parts: enough for 1024 entries */

enum { NEXT = 1, WRITE = 2, INDIRECT = 4, AVAIL = 1 << 7, USED = 1 << 15 };
enum { CALLS_ON = 0, CALLS_BY_EVENT = 2 };

struct part {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct packed_entry {
    uint64_t address;
    uint32_t length;
    uint16_t id, flags;
};

struct ring {
    bool packed, indirect;
    unsigned size;
    char *table, *driver, *device; /* descriptors; avail or driver events; used or device events */
    uint16_t next_avail, next_used;
    bool avail_wrap, used_wrap; /* packed rings only */
    uint16_t unpublished;       /* chains added since the last kick was considered */
};

static inline uint16_t load16(void *where)
{
    return atomic_load_explicit((_Atomic uint16_t *)where, memory_order_acquire);
}

static inline void store16(void *where, uint16_t value)
{
    atomic_store_explicit((_Atomic uint16_t *)where, value, memory_order_release);
}

static inline bool needs_event(uint16_t event, uint16_t index, uint16_t before)
{
    return (uint16_t)(index - event - 1) < (uint16_t)(index - before);
}

static void ring_init(struct ring *ring, bool packed, bool indirect, unsigned size, char *memory)
{
    *ring = (struct ring){ .packed = packed, .indirect = indirect, .size = size, .table = memory,
                           .driver = memory + RING_BYTES, .device = memory + 2 * RING_BYTES,
                           .avail_wrap = true, .used_wrap = true };
    if (packed) {
        store16(ring->driver + 2, CALLS_BY_EVENT);
        store16(ring->driver, 1 << 15);
    }
}

/* Make a chain available. `parts` are at guest address `address`; the kick comes with ring_publish(). */
static void ring_add(struct ring *ring, uint16_t slot, const struct part *parts, unsigned count, uint64_t address)
{
    ring->unpublished++;
    if (ring->packed) {
        struct packed_entry *entry = (struct packed_entry *)ring->table + ring->next_avail;
        uint16_t flags = INDIRECT | (ring->avail_wrap ? AVAIL : USED);

        entry->address = address;
        entry->length = count * sizeof(*parts);
        entry->id = slot;
        store16(&entry->flags, flags);
        if (++ring->next_avail == ring->size) {
            ring->next_avail = 0;
            ring->avail_wrap = !ring->avail_wrap;
        }
        return;
    }
    struct part *table = (struct part *)ring->table;
    uint16_t head = ring->indirect ? slot : slot * MAX_PARTS;

    if (ring->indirect) {
        table[head] = (struct part){ address, count * sizeof(*parts), INDIRECT, 0 };
    } else {
        for (unsigned i = 0; i < count; i++) {
            table[head + i] = parts[i];
            table[head + i].next = head + i + 1;
        }
    }
    ((uint16_t *)ring->driver)[2 + (ring->next_avail & (ring->size - 1))] = head;
    store16(ring->driver + 2, ++ring->next_avail);
}

/* Returns whether the back-end wants a kick for what was added. */
static bool ring_publish(struct ring *ring)
{
    uint16_t count = ring->unpublished, index = ring->next_avail;

    ring->unpublished = 0;
    atomic_thread_fence(memory_order_seq_cst);
    if (count == 0) {
        return false;
    }
    if (!ring->packed) {
        return needs_event(load16(ring->device + 4 + 8 * ring->size), index, index - count);
    }
    uint16_t event = load16(ring->device), flags = load16(ring->device + 2);

    if (flags != CALLS_BY_EVENT) {
        return flags == CALLS_ON;
    }
    uint16_t place = event & 0x7fff;
    return needs_event(event >> 15 == ring->avail_wrap ? place : place - ring->size, index, index - count);
}

/* Returns the slot of a chain that the back-end has given back, and the bytes it wrote; -1 for none. */
static int ring_take(struct ring *ring, uint32_t *written)
{
    if (ring->packed) {
        struct packed_entry *entry = (struct packed_entry *)ring->table + ring->next_used;
        uint16_t flags = load16(&entry->flags);

        if (!!(flags & AVAIL) != ring->used_wrap || !!(flags & USED) != ring->used_wrap) {
            return -1;
        }
        if (++ring->next_used == ring->size) {
            ring->next_used = 0;
            ring->used_wrap = !ring->used_wrap;
        }
        *written = entry->length;
        return entry->id;
    }
    if (load16(ring->device + 2) == ring->next_used) {
        return -1;
    }
    uint32_t *element = (uint32_t *)(ring->device + 4) + 2 * (ring->next_used++ & (ring->size - 1));

    *written = element[1];
    return ring->indirect ? element[0] : element[0] / MAX_PARTS;
}

/* Ask for a call at the next chain that is given back, as a driver does before it goes to sleep. */
static void ring_arm(struct ring *ring)
{
    if (ring->packed) {
        store16(ring->driver, ring->next_used | ring->used_wrap << 15);
    } else {
        store16(ring->driver + 4 + 2 * ring->size, ring->next_used);
    }
    atomic_thread_fence(memory_order_seq_cst);
}
