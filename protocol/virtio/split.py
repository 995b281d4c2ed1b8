"""Split virtqueues: layout, and the rule of notifications (virtio 1.3, section 2.7)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

MAX_SIZE = 32768
"""The largest queue size, which must be a power of two."""


class DescriptorFlag(IntFlag):
    """Flags of a descriptor, the same in split and packed rings (sections 2.7.5 and 2.8.6)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


DESCRIPTOR_FORMAT = "QIHH"
"""Guest address, length, flags, next; to be prefixed with the ring's byte order."""
DESCRIPTOR_SIZE = 16
DESCRIPTOR_ALIGN = 16

AVAIL_NO_INTERRUPT = 1
"""The driver's flags word: do not call."""
AVAIL_FLAGS = 0
AVAIL_INDEX = 1
AVAIL_RING = 2
"""Offsets in the available ring, in words of 16 bits; used_event is after the ring."""
AVAIL_ALIGN = 2

USED_NO_NOTIFY = 1
"""The device's flags word: do not kick."""
USED_FLAGS = 0
USED_INDEX = 1
"""Offsets in the used ring, in words of 16 bits."""
USED_RING = 1
"""Offset of the elements, in words of 32 bits; an element has two, the chain's head and its length."""
USED_ALIGN = 4
LEGACY_USED_ALIGN = 4096


def used_event(size: int) -> int:
    """Return the offset of used_event in the available ring, in words of 16 bits."""
    return AVAIL_RING + size


def avail_event(size: int) -> int:
    """Return the offset of avail_event in the used ring, in words of 16 bits."""
    return 2 + 4 * size


def table_bytes(size: int) -> int:
    """Return the bytes of a descriptor table."""
    return DESCRIPTOR_SIZE * size


def avail_bytes(size: int, *, event_index: bool) -> int:
    """Return the bytes of an available ring, with used_event if `event_index` was negotiated."""
    return 4 + 2 * size + 2 * event_index


def used_bytes(size: int, *, event_index: bool) -> int:
    """Return the bytes of a used ring, with avail_event if `event_index` was negotiated."""
    return 4 + 8 * size + 2 * event_index


@dataclass(frozen=True)
class Layout:
    """Offsets of a ring's three parts from its start, and its size, in bytes."""

    table: int
    avail: int
    used: int
    end: int


def layout(size: int, align: int = USED_ALIGN) -> Layout:
    """Return a contiguous ring of `size`; legacy drivers align the used ring to 4096 (section 2.7.2)."""
    avail = table_bytes(size)
    used = -(-(avail + avail_bytes(size, event_index=True)) // align) * align
    return Layout(0, avail, used, used + used_bytes(size, event_index=True))


def is_power_of_two(size: int) -> bool:
    """Return whether `size` is a power of two, as that of a split ring must be."""
    return size > 0 and size & (size - 1) == 0


def needs_event(event: int, new: int, old: int) -> bool:
    """Return whether the step from index `old` to `new` passed `event` (section 2.7.7.2); all run freely."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
