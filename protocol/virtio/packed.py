"""Packed virtqueues: where everything is, and when a notification is due (virtio 1.2, section 2.8)."""

from __future__ import annotations

from enum import IntEnum

from protocol.virtio.split import needs_event

MAX_SIZE = 32768
"""The largest queue size; any number up to it may be used."""

START = 0x8000_8000
"""Where a ring is that never ran, as vhost-user tells it: both wrap counters are 1."""

DESCRIPTOR_FORMAT = "<QIHH"
"""Guest address, length, buffer id, flags; packed rings are always little-endian."""
DESCRIPTOR_SIZE = 16
DESCRIPTOR_ALIGN = 16
DESCRIPTOR_FLAGS = 7
"""The flags of a descriptor, in words of 16 bits from its start."""
DESCRIPTOR_LENGTH = 2
DESCRIPTOR_ID_AND_FLAGS = 3
"""What a used descriptor holds, in words of 32 bits from its start; id is the lower half."""

AVAIL = 1 << 7
USED = 1 << 15
"""Flags that say whose a descriptor is, by comparison with a wrap counter (section 2.8.1)."""


class EventFlags(IntEnum):
    """What a side wants to be told of (section 2.8.10)."""

    ENABLE = 0
    DISABLE = 1
    DESCRIPTOR = 2


EVENT_SIZE = 4
"""An event suppression structure: a place (15 bits, wrap counter) and EventFlags, 16 bits each."""
EVENT_ALIGN = 4
WRAP = 1 << 15
"""The wrap counter in a place."""


def place(slot: int, wrap: bool) -> int:
    """Return a descriptor's index with the wrap counter there, as 16 bits."""
    return slot | wrap << 15


def split_place(word: int) -> tuple[int, bool]:
    """Return the descriptor's index and the wrap counter in the lower 16 bits of `word`."""
    return word & (WRAP - 1), bool(word & WRAP)


def whole_base(word: int) -> int:
    """Return a ring's base as vhost-user has it, with the available place below and the used one above.

    DPDK's front-ends, and back-ends that QEMU was connected to before, leave the used place out: it is
    the available one. Taken at its word, such a base has more descriptors in use than the ring has.
    """
    return word | word << 16 if not word >> 16 and word & WRAP else word


def available_flags(wrap: bool) -> int:
    """Return AVAIL and USED as the driver sets them where it makes a descriptor available."""
    return AVAIL if wrap else USED


def used_flags(wrap: bool) -> int:
    """Return AVAIL and USED as the device sets them where it uses a descriptor."""
    return AVAIL | USED if wrap else 0


def event_word(place: int, flags: EventFlags) -> int:
    """Return an event suppression structure as one word of 32 bits."""
    return place | flags << 16


def needs_packed_event(event: int, new: int, wrap: bool, count: int, size: int) -> bool:
    """Tell whether a step of `count` descriptors to (`new`, `wrap`) calls for a notification.

    `event` is the other side's event suppression structure as one word of 32 bits.
    """
    flags = event >> 16 & 3
    if flags != EventFlags.DESCRIPTOR:
        return flags == EventFlags.ENABLE
    slot, event_wrap = split_place(event)
    if event_wrap != wrap:
        slot -= size
    return needs_event(slot, new, new - count)
