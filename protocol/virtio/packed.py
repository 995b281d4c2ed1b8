"""Packed virtqueues: layout, and the rule of notifications (virtio 1.3, section 2.8)."""

from __future__ import annotations

from enum import IntEnum

from protocol.virtio.split import needs_event

MAX_SIZE = 32768
"""The largest queue size; it need not be a power of two."""

START = 0x8000_8000
"""The base of a ring that never ran, as in vhost-user: both wrap counters are 1."""

DESCRIPTOR_FORMAT = "<QIHH"
"""Guest address, length, buffer id, flags; packed rings are always little-endian."""
DESCRIPTOR_SIZE = 16
DESCRIPTOR_ALIGN = 16
DESCRIPTOR_FLAGS = 7
"""The flags of a descriptor, in words of 16 bits from its start."""
DESCRIPTOR_LENGTH = 2
DESCRIPTOR_ID_AND_FLAGS = 3
"""Buffer id (the lower half) and flags of a used descriptor, in words of 32 bits from its start."""

AVAIL = 1 << 7
USED = 1 << 15
"""Flags that state the owner of a descriptor, by comparison with a wrap counter (section 2.8.1)."""


class EventFlags(IntEnum):
    """The notifications that a side asks for (section 2.8.10)."""

    ENABLE = 0
    DISABLE = 1
    DESCRIPTOR = 2


EVENT_SIZE = 4
"""Bytes of an event suppression structure: place (15 bits, wrap counter) and EventFlags, 16 bits each."""
EVENT_ALIGN = 4
WRAP = 1 << 15
"""The bit of the wrap counter in a place."""


def place(slot: int, wrap: bool) -> int:
    """Return a descriptor's index with its wrap counter, as 16 bits."""
    return slot | wrap << 15


def split_place(word: int) -> tuple[int, bool]:
    """Return the descriptor's index and the wrap counter in the lower 16 bits of `word`."""
    return word & (WRAP - 1), bool(word & WRAP)


def whole_base(word: int) -> int:
    """Return vhost-user's base of a ring: the available place is the lower half, the used one the upper.

    DPDK's front-ends, and back-ends to which QEMU was connected before, leave the used place out: it equals
    the available one. Read literally, such a base has more descriptors in use than the ring has.
    """
    return word | word << 16 if not word >> 16 and word & WRAP else word


def available_flags(wrap: bool) -> int:
    """Return AVAIL and USED as the driver sets them to make a descriptor available."""
    return AVAIL if wrap else USED


def used_flags(wrap: bool) -> int:
    """Return AVAIL and USED as the device sets them to mark a descriptor used."""
    return AVAIL | USED if wrap else 0


def event_word(place: int, flags: EventFlags) -> int:
    """Return an event suppression structure as one word of 32 bits."""
    return place | flags << 16


def needs_packed_event(event: int, new: int, wrap: bool, count: int, size: int) -> bool:
    """Return whether a step of `count` descriptors to (`new`, `wrap`) requires a notification.

    `event` is the other side's event suppression structure as one word of 32 bits.
    """
    flags = event >> 16 & 3
    if flags != EventFlags.DESCRIPTOR:
        return flags == EventFlags.ENABLE
    slot, event_wrap = split_place(event)
    if event_wrap != wrap:
        slot -= size
    return needs_event(slot, new, new - count)
