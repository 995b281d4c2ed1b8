"""The buffer in which a back-end notes what it has in flight (vhost-user, "Inflight I/O tracking").

Its fields are in the byte order of the machine.
"""

from __future__ import annotations

VERSION = 1
"""A region of version 0 was never used."""
QUEUE_ALIGN = 64

SPLIT_HEADER_SIZE = 16
SPLIT_ENTRY_SIZE = 16
PACKED_HEADER_SIZE = 32
PACKED_ENTRY_SIZE = 32

# Both headers, in words of 16 bits; after a u64 of features, of which there are none.
HEADER_VERSION = 4
HEADER_SIZE = 5

# Split, in words of 16 bits.
LAST_BATCH_HEAD = 6
USED_INDEX = 7

# Split entry: the first in bytes, the second in words of 16 bits, the third in words of 64 bits.
SPLIT_INFLIGHT = 0
SPLIT_NEXT = 3
SPLIT_COUNTER = 1

# Packed, in words of 16 bits.
FREE_HEAD = 6
OLD_FREE_HEAD = 7

PACKED_POSITION = 2
"""Word of 64 bits: used_idx, old_used_idx (16 bits each), used_wrap_counter, old_used_wrap_counter (8)."""

PACKED_POSITION_FORMAT = "=HHBBxx"

# Packed entry: the first in bytes, then words of 16 bits, then one of 64 bits.
PACKED_INFLIGHT = 0
PACKED_NEXT = 1
PACKED_LAST = 2
PACKED_NUM = 3
PACKED_COUNTER = 1
PACKED_DESCRIPTOR = 16
"""Where an entry keeps its descriptor: id, flags (16 bits each), length (32 bits), address (64 bits)."""
PACKED_DESCRIPTOR_FORMAT = "=HHIQ"


def queue_bytes(size: int, *, packed: bool) -> int:
    """Return the bytes that one queue of `size` takes, the padding up to the next queue included."""
    header, entry = (
        (PACKED_HEADER_SIZE, PACKED_ENTRY_SIZE) if packed else (SPLIT_HEADER_SIZE, SPLIT_ENTRY_SIZE)
    )
    return -(-(header + entry * size) // QUEUE_ALIGN) * QUEUE_ALIGN
