"""A disk around the host's page cache (O_DIRECT)."""

from __future__ import annotations

import contextlib
import errno
import threading
from functools import partial
from typing import TYPE_CHECKING

from vhost_user.chain import Readable, Writable
from vhost_user.devices.blk_file import FileDisk, aligned_buffer, length_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocol.fds import OwnedFd


class DirectDisk(FileDisk):
    """A `Disk` around the host's page cache (O_DIRECT): every request waits for the medium.

    Where the driver's buffers or sectors are not aligned as the host needs it, data are copied.
    """

    is_direct = True

    def __init__(self, fd: OwnedFd, *, read_only: bool = False) -> None:
        """Own `fd`, which has O_DIRECT set, unless this raises: ValueError, OSError."""
        super().__init__(fd, read_only=read_only)
        self._parts_of_blocks = threading.Lock()

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
        if end - start == length and _succeeds_aligned(partial(super().read, buffers, offset)):
            return
        copy = aligned_buffer(end - start)
        super().read([copy], start)
        Writable(buffers, length).write(copy[offset - start :])

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""
        length = length_of(buffers)
        start, end = self._blocks(offset, length)
        is_whole = end - start == length
        if is_whole and _succeeds_aligned(partial(super().write, buffers, offset, stable=stable)):
            return
        copy = aligned_buffer(end - start)
        with contextlib.nullcontext() if is_whole else self._parts_of_blocks:
            if not is_whole:
                super().read([copy], start)
            copy[offset - start :][:length] = Readable(buffers, length).read()
            super().write([copy], start, stable=stable)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """Return where the blocks start and end that hold `length` bytes at `offset`."""
        block = self.block_sizes.logical
        return offset // block * block, -(-(offset + length) // block) * block


def _succeeds_aligned(transfer: Callable[[], None]) -> bool:
    """Do a transfer; return False where its buffers are not aligned as O_DIRECT happens to need it."""
    try:
        transfer()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True
