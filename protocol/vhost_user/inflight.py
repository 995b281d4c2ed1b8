"""Layout of the buffer that tracks in-flight requests, split and packed.

QEMU docs/interop/vhost-user.rst, "Inflight I/O tracking".

Each queue has a part: a header, then an entry for each descriptor, of the header's size. Fields are in the
machine's byte order. Offsets are in words of the field's own width: in a header from the start of the part,
in an entry from the start of the entry.
"""

from __future__ import annotations

VERSION = 1
"""The version of a part in use; version 0 is a part that was never used."""
QUEUE_ALIGN = 64

SPLIT_SIZE = 16
"""Bytes of a split queue's header, and of each of its entries."""
PACKED_SIZE = 32
"""Bytes of a packed queue's header, and of each of its entries."""

# Both headers; the first word, a u64 of features, is always 0.
VERSION_16 = 4
ENTRIES_16 = 5

# Split header.
LAST_BATCH_HEAD_16 = 6
USED_INDEX_16 = 7

# Split entry.
SPLIT_INFLIGHT_8 = 0
SPLIT_NEXT_16 = 3
SPLIT_COUNTER_64 = 1

# Packed header.
FREE_HEAD_16 = 6
OLD_FREE_HEAD_16 = 7
POSITION_64 = 2
POSITION_FORMAT = "=HHBBxx"
"""used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter: four fields in one aligned word."""

# Packed entry.
PACKED_INFLIGHT_8 = 0
PACKED_NEXT_16 = 1
PACKED_LAST_16 = 2
PACKED_NUM_16 = 3
PACKED_COUNTER_64 = 1
PACKED_DESCRIPTOR_8 = 16
PACKED_DESCRIPTOR_FORMAT = "=HHIQ"
"""The descriptor in an entry: buffer id, flags, length, guest address."""


def part_bytes(size: int, *, packed: bool) -> int:
    """Return the bytes of the part of a queue of this size."""
    return (1 + size) * (PACKED_SIZE if packed else SPLIT_SIZE)


def queue_bytes(size: int, *, packed: bool) -> int:
    """Return the distance in bytes between the parts of two queues of this size."""
    return -(-part_bytes(size, packed=packed) // QUEUE_ALIGN) * QUEUE_ALIGN
