"""Memory: the guest's memory of a front-end, given out for rings and buffers."""

from __future__ import annotations

import os
from bisect import insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from protocol.vhost_user import MemoryRegion
from protocol.words import plural
from vhost_user.memory.mapping import map_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096

FIRST_GUEST_ADDRESS = 0x10_0000

USER_OFFSET = 0x7E00_0000_0000
"""The difference between a user address and its guest address: mistaking one for the other shows."""


class OutOfMemoryError(Exception):
    """No region has that much room: give `connect()` more memory, or add some."""


@dataclass(frozen=True, eq=False)
class Block:
    """Guest memory that was given out: its guest address, and the memory."""

    address: int
    view: memoryview

    def __len__(self) -> int:
        return len(self.view)


class Region:
    """A region of guest memory. `view` is the memory, from the region's start on."""

    def __init__(self, guest_address: int, size: int, fd: OwnedFd, offset: int) -> None:
        """Take ownership of the file. Raises MappingError."""
        self.guest_address = guest_address
        self.size = size
        self.fd = fd
        self.offset = offset
        self.view = map_shared(fd, size, offset)
        self._free = [(0, size)]

    @property
    def end(self) -> int:
        """The guest address behind the region."""
        return self.guest_address + self.size

    def holds(self, address: int, size: int = 1) -> bool:
        """Tell whether `size` bytes at a guest address are in the region."""
        return self.guest_address <= address and address + size <= self.end

    def describe(self, user_offset: int) -> MemoryRegion:
        """Return what the back-end is told of the region."""
        return MemoryRegion(self.guest_address, self.size, self.guest_address + user_offset, self.offset)

    def allocate(self, size: int, align: int) -> Block | None:
        """Give out the first room there is; None where there is none."""
        for place, (start, end) in enumerate(self._free):
            first = -(-(self.guest_address + start) // align) * align - self.guest_address
            if first + size <= end:
                rest = [(start, first), (first + size, end)]
                self._free[place : place + 1] = [run for run in rest if run[0] < run[1]]
                return Block(self.guest_address + first, self.view[first : first + size])
        return None

    def free(self, block: Block) -> None:
        """Take a block back."""
        start = block.address - self.guest_address
        insort(self._free, (start, start + len(block)))
        self._free = list(_joined(self._free))

    def close(self) -> None:
        """Close the file, and let go of the memory; it is unmapped with the last block."""
        self.fd.close()
        self.view = memoryview(b"")


def _joined(runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join runs that touch."""
    start, end = runs[0]
    for next_start, next_end in runs[1:]:
        if next_start != end:
            yield start, end
            start = next_start
        end = next_end
    yield start, end


class Memory:
    """The guest's memory. The front-end tells the back-end what is in `regions`."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.user_offset = USER_OFFSET
        """What user addresses have more than guest addresses; 0 with GPA_ADDRESSES."""

    def create(
        self, size: int, guest_address: int | None = None, *, fd: OwnedFd | None = None, offset: int = 0
    ) -> Region:
        """Add a region of `size` bytes, in whole pages: a new file, or `fd`, ours then, from `offset` on.

        Without `guest_address` it begins at the next 2 MiB behind the others. Raises ValueError where it
        overlaps another one, and MappingError.
        """
        size = -(-size // PAGE) * PAGE
        if guest_address is None:
            guest_address = self._next_address()
        if fd is None:
            fd = OwnedFd(os.memfd_create("guest-memory", os.MFD_CLOEXEC))
            os.ftruncate(fd.fileno(), offset + size)
        try:
            self._check_place(guest_address, size)
            region = Region(guest_address, size, fd, offset)
        except BaseException:
            fd.close()
            raise
        self.regions.append(region)
        return region

    def remove(self, region: Region) -> None:
        """Remove a region and close its file; what was given out of it can be used no longer."""
        self.regions.remove(region)
        region.close()

    def allocate(self, size: int, align: int = 16) -> Block:
        """Give out `size` bytes, whose content may be anything. Raises OutOfMemoryError."""
        for region in self.regions:
            if (block := region.allocate(size, align)) is not None:
                return block
        raise OutOfMemoryError(f"no memory region has {plural(size, 'byte')} left")

    def put(self, data: bytes) -> Block:
        """Give out memory that holds `data`. Raises OutOfMemoryError."""
        block = self.allocate(len(data))
        block.view[:] = data
        return block

    def free(self, block: Block) -> None:
        """Take a block back; to no effect if its region was removed."""
        for region in self.regions:
            if region.holds(block.address, len(block)):
                region.free(block)

    def view(self, address: int, size: int) -> memoryview:
        """Return `size` bytes at a guest address. Raises ValueError unless they are in one region."""
        for region in self.regions:
            if region.holds(address, size):
                return region.view[address - region.guest_address :][:size]
        raise ValueError(f"no memory region holds {plural(size, 'byte')} at {address:#x}")

    def close(self) -> None:
        """Remove all regions."""
        while self.regions:
            self.remove(self.regions[0])

    def _next_address(self) -> int:
        end = max((region.end for region in self.regions), default=FIRST_GUEST_ADDRESS)
        return -(-end // 0x20_0000) * 0x20_0000 if self.regions else end

    def _check_place(self, address: int, size: int) -> None:
        for region in self.regions:
            if address < region.end and region.guest_address < address + size:
                raise ValueError(
                    f"{size:#x} bytes at {address:#x} overlap those at {region.guest_address:#x}"
                )
