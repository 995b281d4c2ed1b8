"""A disk around the host's page cache (O_DIRECT)."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from protocol.virtio.blk import SECTOR_SIZE
from vhost_user.buffers import Readable, Writable
from vhost_user.devices.blk.file import FileDisk, aligned_buffer, length_of, read_all, write_all
from vhost_user.devices.blk.ranges import RangeLock
from vhost_user.devices.blk.sizes import direct_alignment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from protocol.fds import OwnedFd


class DirectDisk(FileDisk):
    """A `Disk` around the host's page cache (O_DIRECT): every request waits for the medium.

    What the host needs aligned is its affair, and no driver notices: where buffers or sectors are not,
    data are copied, and where a request has parts of blocks only, the blocks are read first, and
    no other request changes them meanwhile. What is beyond the last whole block of a file
    cannot be written around the page cache without making it longer: it goes through the cache, to the
    medium and out of it again.
    """

    is_direct = True

    def __init__(
        self,
        fd: OwnedFd,
        direct: OwnedFd,
        *,
        path: str = "",
        read_only: bool = False,
        logical_block_size: int | None = None,
        alignment: int | None = None,
    ) -> None:
        """Own `fd` and `direct`, the same file without O_DIRECT and with it, unless this raises.

        `alignment` is what places and lengths must be a multiple of; by default it is found out. Raises
        ValueError and OSError, as FileDisk does.
        """
        super().__init__(fd, path=path, read_only=read_only, logical_block_size=logical_block_size)
        self._direct = direct.fileno()
        self.alignment = alignment or direct_alignment(self._direct)
        self.block_sizes = self.block_sizes.at_least(self.alignment)
        self._ranges = RangeLock() if self.alignment > SECTOR_SIZE else None
        """Who is at work where; None where no request can have a part of a block only."""
        self._direct_owner = direct

    def direct_file(self) -> None:
        """Return None: nothing is in memory."""

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Raise BlockingIOError: nothing is in memory."""
        raise BlockingIOError

    def write_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Raise BlockingIOError: memory is not where it is to go."""
        raise BlockingIOError

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill all the buffers."""
        length = length_of(buffers)
        start, end = self._blocks(offset, length)
        if end > self.size:
            with self._hold(start, end, alone=True), self._uncached(start, end):
                super().read(buffers, offset)
            return
        if end - start == length and _succeeds_aligned(partial(read_all, self._direct, buffers, offset)):
            return
        copy = aligned_buffer(end - start)
        read_all(self._direct, [copy], start)
        Writable(buffers, length).write(copy[offset - start :])

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""
        length = length_of(buffers)
        start, end = self._blocks(offset, length)
        is_whole = end - start == length
        with self._hold(start, end, alone=not is_whole):
            if end > self.size:
                with self._uncached(start, end):
                    super().write(buffers, offset, stable=True)
                return
            write = partial(write_all, self._direct, stable=stable)
            if is_whole and _succeeds_aligned(partial(write, buffers, offset)):
                return
            copy = aligned_buffer(end - start)
            if not is_whole:
                self._read_ends(copy, start)
            copy[offset - start :][:length] = Readable(buffers, length).read()
            write([copy], start)

    def discard(self, offset: int, length: int) -> None:
        """Free the space, where the host can."""
        with self._hold(*self._blocks(offset, length)):
            super().discard(offset, length)

    def close(self) -> None:
        """Close the file."""
        self._direct_owner.close()
        super().close()

    def _zero_range(self, offset: int, length: int, *, unmap: bool) -> bool:
        with self._hold(*self._blocks(offset, length)):
            return super()._zero_range(offset, length, unmap=unmap)

    def _hold(self, start: int, end: int, *, alone: bool = False) -> contextlib.AbstractContextManager[None]:
        """Keep others away who would change parts of these blocks, or all who change them."""
        return _NOBODY if self._ranges is None else self._ranges.hold(start, end, alone=alone)

    @contextlib.contextmanager
    def _uncached(self, start: int, end: int) -> Iterator[None]:
        """Leave nothing in the page cache that the block has brought there."""
        try:
            yield
        finally:
            os.posix_fadvise(self.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def _read_ends(self, copy: memoryview, start: int) -> None:
        """Read the first and the last block, of which something may stay as it is."""
        last = len(copy) - self.alignment
        for place in {0, last}:
            read_all(self._direct, [copy[place:][: self.alignment]], start + place)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """Return where the blocks start and end that hold `length` bytes at `offset`."""
        block = self.alignment
        return offset // block * block, -(-(offset + length) // block) * block


_NOBODY = contextlib.nullcontext()


def _succeeds_aligned(transfer: Callable[[], None]) -> bool:
    """Do a transfer; return False where its buffers are not aligned as O_DIRECT happens to need it."""
    try:
        transfer()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
