"""Rings written by hand: for drivers that break the rules."""

from __future__ import annotations

import gc
import struct
from typing import TYPE_CHECKING

from protocol.virtio import packed, split
from protocol.virtio.split import DescriptorFlag
from tests.vhost_user.ring.rig import BUFFERS, GUEST, MODERN, TABLES, Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.ring import Ring

SIZE = 8
NEXT = int(DescriptorFlag.NEXT)
WRITE = int(DescriptorFlag.WRITE)
INDIRECT = int(DescriptorFlag.INDIRECT)
DATA = GUEST + BUFFERS
TABLE = GUEST + TABLES

Descriptor = tuple[int, int, int, int]
"""Address, length, flags; and next, or in a packed ring the buffer id."""


class RawSplit:
    """A split ring of SIZE, its descriptors and indices as a test wants them."""

    def __init__(self, features: int = MODERN, *, tracked: bool = False) -> None:
        self.rig = Rig("split", SIZE, features, tracked=tracked)
        self.parts = split.layout(SIZE)
        self.index = 0

    def start(self) -> Ring:
        return self.rig.start()

    def close(self) -> None:
        self.rig.close()
        gc.collect()  # errors that a test caught refer to the frames they passed, and those to the memory

    def descriptors(self, *rows: Descriptor, start: int = 0) -> None:
        write_table(self.rig.view, start * 16, rows)

    def indirect(self, *rows: Descriptor) -> None:
        """Write the indirect table at TABLE."""
        write_table(self.rig.view, TABLES, rows)

    def offer(self, *heads: int) -> None:
        """Make chains available."""
        for head in heads:
            struct.pack_into("<H", self.rig.view, self.parts.avail + 4 + 2 * (self.index % SIZE), head)
            self.index += 1
        self.set_index(self.index)

    def set_index(self, index: int) -> None:
        struct.pack_into("<H", self.rig.view, self.parts.avail + 2, index & 0xFFFF)


class RawPacked:
    """A packed ring of SIZE in its first lap."""

    def __init__(self, features: int = MODERN) -> None:
        self.rig = Rig("packed", SIZE, features)

    def start(self) -> Ring:
        return self.rig.start()

    def close(self) -> None:
        self.rig.close()
        gc.collect()  # errors that a test caught refer to the frames they passed, and those to the memory

    def descriptors(self, *rows: Descriptor, start: int = 0) -> None:
        """Write descriptors (address, length, flags, buffer id), available."""
        available = packed.available_flags(True)
        write_table(
            self.rig.view, start * 16, [(address, length, i, f | available) for address, length, f, i in rows]
        )

    def indirect(self, *rows: Descriptor) -> None:
        """Write the indirect table at TABLE."""
        write_table(self.rig.view, TABLES, [(a, length, i, f) for a, length, f, i in rows])


def write_table(view: memoryview, place: int, rows: Sequence[Descriptor]) -> None:
    for number, row in enumerate(rows):
        struct.pack_into("<QIHH", view, place + 16 * number, *row)
