"""Guest memory with guards: whoever writes beside it, or where nobody asked for it, is caught."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from tests.fuzz.harness import DefectError
from vhost_user.memory import GuestMemory, Region, guest_address_of

if TYPE_CHECKING:
    from collections.abc import Iterable

USER = 0x7F00_0000_0000
FILE_SIZE = 0x10000
GUARD = 0x5A

RING = Region(0, 0x2400, USER, 0x1800)
"""Where rings are: its file offset and size are no multiples of a page, so its mapping has guards in it."""
NEIGHBOUR = Region(0x2400, 0x1C00, USER + 0x10_0000, 0x8400)
"""Next to RING for the guest, elsewhere for the front-end and in the file."""
LAST = Region((1 << 64) - 0x1000, 0x1000, USER + 0x20_0000, 0xD000)
"""At the end of the address space."""
REGIONS = (RING, NEIGHBOUR, LAST)


def _guard_ranges() -> list[range]:
    ranges, start = [], 0
    for region in sorted(REGIONS, key=lambda region: region.mmap_offset):
        ranges.append(range(start, region.mmap_offset))
        start = region.mmap_offset + region.size
    return [*ranges, range(start, FILE_SIZE)]


_GUARDS = _guard_ranges()


class GuardedGuest:
    """A file with three regions and guards between them, and what each byte must be in the end."""

    def __init__(self) -> None:
        self.file = OwnedFd(os.memfd_create("fuzz-guest"))
        os.ftruncate(self.file.fileno(), FILE_SIZE)
        self._whole = mmap.mmap(self.file.fileno(), FILE_SIZE)
        self._blank = bytearray([GUARD]) * FILE_SIZE
        for region in REGIONS:
            self._blank[region.mmap_offset : region.mmap_offset + region.size] = bytes(region.size)
        self._expected = bytearray(self._blank)
        self._changeable: list[slice] = []
        self.memory = GuestMemory()
        self.set_table()

    def set_table(self) -> None:
        """Map the regions, again if they are mapped."""
        self.memory.set_table([(region, self.file.dup()) for region in REGIONS])

    def begin(self, ring: bytes, changeable: Iterable[tuple[int, int]]) -> None:
        """Have nothing in memory but `ring` at address 0; `changeable` are (address, length) of RING.

        Those are the device's own to write, as are all buffers that `fill()` fills.
        """
        ring = ring[: RING.size]
        self._whole[:] = bytes(self._blank)
        self._expected[:] = self._blank
        self._changeable = []
        self.scribble(0, ring)
        self.allow(changeable)

    def allow(self, changeable: Iterable[tuple[int, int]]) -> None:
        """Let the device write to these parts of RING, too."""
        for address, length in changeable:
            start = min(RING.mmap_offset + address, RING.mmap_offset + RING.size)
            self._changeable.append(slice(start, min(start + length, RING.mmap_offset + RING.size)))

    def scribble(self, address: int, data: bytes) -> None:
        """Write as the driver, to RING; what is beyond it is dropped."""
        data = data[: max(RING.size - address, 0)]
        start = RING.mmap_offset + address
        self._whole[start : start + len(data)] = data
        self._expected[start : start + len(data)] = data

    def written(self, view: memoryview) -> None:
        """Note that what `view` holds now was written as somebody asked for."""
        offset = self.offset_of(view)
        self._expected[offset : offset + len(view)] = view

    def fill(self, view: memoryview, byte: int) -> None:
        """Write a buffer as the device."""
        view[:] = bytes([byte]) * len(view)
        self.written(view)

    def offset_of(self, view: memoryview) -> int:
        """Return where in the file a writable view is. Raises DefectError for one outside the regions."""
        address = guest_address_of(view)
        for region in REGIONS:
            if region.guest_address <= address <= address + len(view) <= region.guest_address + region.size:
                return region.mmap_offset + address - region.guest_address
        raise DefectError(f"a buffer of {len(view)} bytes at {address:#x} is in no region")

    def check(self) -> None:
        """Raise DefectError where a byte is not what it must be."""
        found = self._whole[:]
        for guard in _GUARDS:
            if found[guard.start : guard.stop].count(GUARD) != len(guard):
                raise DefectError(f"written outside the regions, within {guard}")
        for part in self._changeable:
            self._expected[part] = found[part]
        if found != self._expected:
            place = next(i for i in range(FILE_SIZE) if found[i] != self._expected[i])
            raise DefectError(f"the byte {place:#x} of the file is {found[place]}, and nobody asked for that")


class GuardedFile:
    """Memory of another purpose (a dirty log, an in-flight buffer), with guards around it."""

    offset = 0x800
    """Where in the file it begins."""

    def __init__(self, room: int) -> None:
        self.size = 0
        self.file = OwnedFd(os.memfd_create("fuzz-file"))
        self._room = 2 * self.offset + room
        os.ftruncate(self.file.fileno(), self._room)
        self._whole = mmap.mmap(self.file.fileno(), self._room)

    def begin(self, data: bytes, size: int) -> None:
        """Have `size` bytes: `data`, and zeros after it."""
        self.size = size
        guarded = bytes([GUARD]) * self.offset + data[:size].ljust(size, b"\0")
        self._whole[:] = guarded.ljust(self._room, bytes([GUARD]))

    def content(self) -> bytes:
        """Return what is between the guards."""
        return self._whole[self.offset : self.offset + self.size]

    def check(self) -> None:
        """Raise DefectError where a guard was written to."""
        guards = self._whole[: self.offset] + self._whole[self.offset + self.size :]
        if guards.count(GUARD) != len(guards):
            raise DefectError(f"written beside the {self.size} bytes of a buffer")
