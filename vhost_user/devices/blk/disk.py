"""Disk: the host's side of a block device, such as a raw file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from protocol.fds import OwnedFd
from protocol.program.command_line import EMPTY, UserError
from vhost_user.devices.blk.direct import DirectDisk
from vhost_user.devices.blk.file import FileDisk
from vhost_user.devices.blk.formats import HEAD_SIZE, TAIL_SIZE, recognise

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from vhost_user.devices.blk.parallel_reads import Read
    from vhost_user.devices.blk.sizes import BlockSizes

_log = logging.getLogger("vhost_user.blk")


class DiskUnavailableError(UserError):
    """A file or block device cannot be used as a disk. One line that says why, and what to do."""


class Disk(Protocol):
    """Where the sectors are kept. Offsets and lengths are in bytes, multiples of 512, and within `size`.

    Methods may block, are called in threads, several at a time, and raise OSError if they fail;
    but those named `_now` are called in the loop's thread and must not block, nor `measure()`.
    """

    @property
    def name(self) -> str:
        """What the log calls it."""

    @property
    def serial(self) -> str:
        """What a guest tells it from others by, unless told otherwise: at most 20 characters of ASCII."""

    @property
    def size(self) -> int:
        """Bytes, as when `measure()` was called last."""

    @property
    def read_only(self) -> bool:
        """Whether it must not be written to."""

    @property
    def block_sizes(self) -> BlockSizes:
        """In what sizes it likes its requests."""

    def direct_file(self) -> tuple[int, int] | None:
        """Return a file that has the sectors at the same offsets, and the flags to read it with preadv(2).

        Reads that need no waiting go to it then, and not to `read_now()`; None: they go there, as they do
        in a class that overrides `read_now()` and not this. The descriptor stays the disk's, and is used in
        the thread of the loop until the call that asked ends.
        """

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Read what is in memory of `length` bytes; return how much. Raises OSError for nothing."""

    @property
    def shares_reads(self) -> bool:
        """Whether several large reads are done sooner by `read_each_now()` than one after the other."""

    def read_each_now(self, reads: Sequence[Read]) -> Generator[tuple[int, int], None, None]:
        """Do what `read_now()` does for one or more large reads, buffers with an offset.

        Yields the place in `reads` of each as it is done, and how much it read: -1 for an error.
        To be asked until it ends, or closed.
        """

    def write_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Write what needs no waiting of `length` bytes; return how much. Raises OSError for nothing."""

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill all the buffers."""

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""

    def flush(self) -> None:
        """Bring to the medium what was written."""

    def discard(self, offset: int, length: int) -> None:
        """Free what is there, which is not needed any more; reading it may give anything."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Let what is there read as zeroes; with `unmap` it may take up no space any more."""

    def measure(self) -> bool:
        """Look at the size again; return whether it has changed."""

    def close(self) -> None:
        """Let go of it."""


def open_disk(
    path: str,
    *,
    read_only: bool = False,
    direct: bool = False,
    raw: bool = False,
    logical_block_size: int | None = None,
) -> FileDisk:
    """Open a raw file or a block device; `direct` goes around the page cache. The caller closes it.

    What looks like another format than a raw disk is refused, unless it is meant to be served byte by
    byte, `raw`. `logical_block_size` is the disk's sector size, by default that of the block device, and
    512 for a file. Raises DiskUnavailableError.
    """
    flags = os.O_RDONLY if read_only else os.O_RDWR
    with contextlib.ExitStack() as stack:
        fds = [_open(path, flags, stack)]
        if direct:
            fds.append(_open(path, flags | os.O_DIRECT, stack))
        try:
            kind = DirectDisk if direct else FileDisk
            disk = kind(*fds, path=path, read_only=read_only, logical_block_size=logical_block_size)
            _check(disk, path, raw=raw)
        except (OSError, ValueError) as error:
            raise DiskUnavailableError(f"{path} cannot be a disk: {error}") from None
        stack.pop_all()
    return disk


def _open(path: str, flags: int, stack: contextlib.ExitStack) -> OwnedFd:
    """Open a file, which `stack` is to close. Raises DiskUnavailableError."""
    if Path(path).is_fifo():  # which would keep us until somebody writes to it
        raise DiskUnavailableError(f"{path} is a pipe; give a raw file or a block device")
    try:
        fd = OwnedFd(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        raise DiskUnavailableError(
            f"cannot open {path or EMPTY}: {error.strerror}{_remedy(error, path)}"
        ) from None
    stack.callback(fd.close)
    return fd


def _check(disk: FileDisk, path: str, *, raw: bool) -> None:
    """Raise DiskUnavailableError where there is no disk in the file."""
    if not raw and (kind := recognise(*disk.ends(HEAD_SIZE, TAIL_SIZE))) is not None:
        raise DiskUnavailableError(kind.complaint(path))
    if not disk.size:
        what = "has not one whole block" if disk.rest else "is empty"
        raise DiskUnavailableError(f"{path} {what}; give it a size, as with: truncate -s 1G {path}")
    if disk.rest:
        _log.warning(
            "%s: its last %d bytes are less than a block of %d, and the guest does not see them",
            *(path, disk.rest, disk.block_sizes.logical),
        )


def _remedy(error: OSError, path: str) -> str:
    if not path or error.errno == errno.EISDIR:
        return "; give a raw file or a block device"
    if error.errno == errno.ENOENT:
        return f"; create it first, as with: truncate -s 1G {path}"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "; allow this user to read and write it, or add --read-only if it may only be read"
    if error.errno == errno.EINVAL:
        return "; its filesystem may be one without O_DIRECT: use --cache writeback"
    return ""
