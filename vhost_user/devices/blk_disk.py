"""The host's part of a block device: where its sectors are kept. A raw file or a block device."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from protocol.fds import OwnedFd
from protocol.io.command_line import EMPTY, UserError
from protocol.virtio.blk import SECTOR_SIZE
from vhost_user.chain import Readable, Writable
from vhost_user.devices.blk_sharing import SharedReader, processors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vhost_user.devices.blk_sharing import Read

_log = logging.getLogger("vhost_user.blk")

PAGE_SIZE = 4096
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_ZEROES = 1 << 20
"""Bytes that are written at a time where nothing cheaper makes zeroes."""

# <linux/fs.h>
_BLKSSZGET = 0x1268
_BLKDISCARD = 0x1277
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKALIGNOFF = 0x127A
_BLKPBSZGET = 0x127B

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

QUICK_FILESYSTEMS = frozenset({0x01021994, 0x858458F6, 0x958458F6, 0xEF53})
"""tmpfs, ramfs, hugetlbfs and ext4 (<linux/magic.h>): what these do without RWF_NOWAIT, which the first
three do not know, and ext4 for reads only, stays in memory. Not so NFS, FUSE and the like."""

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS})
"""How kernels and filesystems say that they cannot do it at all, or not at this place."""


class DiskUnavailableError(UserError):
    """A file or block device cannot be used as a disk. One line that says why, and what to do."""


@dataclass(frozen=True)
class BlockSizes:
    """In what sizes a disk likes its requests, all in bytes; zero where it does not care."""

    logical: int = SECTOR_SIZE
    physical: int = PAGE_SIZE
    minimum_io: int = 0
    optimal_io: int = 0
    alignment_offset: int = 0
    """From the start of the disk to the first physical block that is aligned."""


class Disk(Protocol):
    """Where the sectors are kept. Offsets and lengths are in bytes, multiples of 512, and within `size`.

    Methods may block, are called in threads, several at a time, and raise OSError if they fail;
    but those named `_now` are called in the loop's thread and must not block, nor `measure()`.
    """

    @property
    def size(self) -> int:
        """Bytes, as when `measure()` was called last."""

    @property
    def read_only(self) -> bool:
        """Whether it must not be written to."""

    @property
    def block_sizes(self) -> BlockSizes:
        """In what sizes it likes its requests."""

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
        """Take note that nobody needs what is there; reading it may give anything."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Let what is there read as zeroes; with `unmap` it may take up no space any more."""

    def measure(self) -> bool:
        """Look at the size again; return whether it has changed."""

    def close(self) -> None:
        """Let go of it."""


def open_disk(path: str, *, read_only: bool = False, direct: bool = False) -> FileDisk:
    """Open a raw file or a block device; `direct` goes around the page cache. The caller closes it.

    Raises DiskUnavailableError.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_DIRECT if direct else 0)
    try:
        fd = OwnedFd(os.open(path, flags | os.O_CLOEXEC))
    except OSError as error:
        raise DiskUnavailableError(
            f"cannot open {path or EMPTY}: {error.strerror}{_remedy(error, path)}"
        ) from None
    try:
        disk = (DirectDisk if direct else FileDisk)(fd, read_only=read_only)
        if not disk.size:
            what = "has not one whole block" if disk.rest else "is empty"
            raise DiskUnavailableError(f"{path} {what}; give it a size, as with: truncate -s 1G {path}")
        if disk.rest:
            _log.warning(
                "%s: its last %d bytes are less than a block of %d, and the guest does not see them",
                *(path, disk.rest, disk.block_sizes.logical),
            )
    except BaseException as error:
        fd.close()
        if isinstance(error, OSError | ValueError):
            raise DiskUnavailableError(f"{path} cannot be a disk: {error}") from None
        raise
    return disk


class FileDisk:
    """A `Disk` that is a raw file or a block device, through the host's page cache."""

    is_direct = False

    def __init__(self, fd: OwnedFd, *, read_only: bool = False) -> None:
        """Own `fd` from now on, unless this raises OSError, or ValueError for what can be no disk."""
        status = os.fstat(fd.fileno())
        self._is_block_device = stat.S_ISBLK(status.st_mode)
        if not self._is_block_device and not stat.S_ISREG(status.st_mode):
            raise ValueError("it is neither a file nor a block device; give a raw file or a block device")
        self.read_only = read_only
        self._owner = fd
        self._fd = fd.fileno()
        # Where a filesystem does not know the flag, but is quick without, we do without. Elsewhere it
        # refuses what has the flag, and all requests come to be done in threads.
        self._read_flags = self._write_flags = os.RWF_NOWAIT
        self._is_quick = self._is_block_device or _filesystem(self._fd) in QUICK_FILESYSTEMS
        if self._is_quick and not self.is_direct and not _can_read_nowait(self._fd):
            self._read_flags = 0
        self._shared_reader: SharedReader | None = None
        self.shares_reads = not self.is_direct and processors() > 1
        if self._is_block_device:
            self.block_sizes = _device_block_sizes(self._fd)
        else:
            self.block_sizes = BlockSizes(_filesystem_block_size(status) if self.is_direct else SECTOR_SIZE)
        self.size = 0
        self.rest = 0
        """Bytes after the last whole block, which are no part of the disk."""
        self.measure()

    def fileno(self) -> int:
        """Return its file descriptor, which stays the disk's. Raises ValueError once it is closed."""
        return self._owner.fileno()

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Read what is in memory of `length` bytes; return how much. Raises OSError for nothing."""
        return os.preadv(self._fd, buffers, offset, self._read_flags)

    def read_each_now(self, reads: Sequence[Read]) -> Generator[tuple[int, int], None, None]:
        """Do what `read_now()` does for one or more reads, with the help of threads.

        Yields the place in `reads` of each as it is done, and how much it read: -1 for an error.
        """
        if self._shared_reader is None:
            self._shared_reader = SharedReader(processors())
        return self._shared_reader.preadv(self._fd, reads, self._read_flags)

    def write_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Write into the page cache; return how much that was. Raises OSError for nothing."""
        try:
            return os.pwritev(self._fd, buffers, offset, self._write_flags)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP or not (self._write_flags and self._is_quick):
                raise
        self._write_flags = 0
        return self.write_now(buffers, offset, length)

    def read(self, buffers: Sequence[memoryview], offset: int) -> None:
        """Fill all the buffers."""
        rest = Readable(buffers, _length(buffers))
        while rest.remaining:
            done = os.preadv(self._fd, rest.buffers[:_IOV_MAX], offset)
            if not done:
                raise OSError(errno.EIO, "the disk has become smaller")
            rest.advance(done)
            offset += done

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""
        flags = os.RWF_DSYNC if stable else 0
        rest = Readable(buffers, _length(buffers))
        while rest.remaining:
            done = os.pwritev(self._fd, rest.buffers[:_IOV_MAX], offset, flags)
            rest.advance(done)
            offset += done

    def flush(self) -> None:
        """Bring to the medium what was written."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, length: int) -> None:
        """Free the space, where the host can."""
        with contextlib.suppress(_CannotError):
            if self._is_block_device:
                _discard(self._fd, offset, length)
            else:
                _fallocate(self._fd, _PUNCH_HOLE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Let what is there read as zeroes, as cheaply as the host can; with `unmap` by freeing the space."""
        for mode in (_PUNCH_HOLE, _ZERO_RANGE) if unmap else (_ZERO_RANGE,):
            with contextlib.suppress(_CannotError):
                _fallocate(self._fd, mode, offset, length)
                return
        zeroes = _aligned_buffer(min(length, _ZEROES))
        end = offset + length
        for start in range(offset, end, _ZEROES):
            self.write([zeroes[: end - start]], start)

    def measure(self) -> bool:
        """Look at the size again; return whether it has changed. Raises OSError."""
        before = self.size
        size = os.lseek(self._fd, 0, os.SEEK_END)
        self.rest = size % self.block_sizes.logical
        self.size = size - self.rest
        return self.size != before

    def close(self) -> None:
        """Close the file."""
        if self._shared_reader is not None:
            self._shared_reader.close()
        self._owner.close()


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
        length = _length(buffers)
        start, end = self._blocks(offset, length)
        if end - start == length and _succeeds_aligned(partial(super().read, buffers, offset)):
            return
        copy = _aligned_buffer(end - start)
        super().read([copy], start)
        Writable(buffers, length).write(copy[offset - start :])

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""
        length = _length(buffers)
        start, end = self._blocks(offset, length)
        is_whole = end - start == length
        if is_whole and _succeeds_aligned(partial(super().write, buffers, offset, stable=stable)):
            return
        copy = _aligned_buffer(end - start)
        with contextlib.nullcontext() if is_whole else self._parts_of_blocks:
            if not is_whole:
                super().read([copy], start)
            copy[offset - start :][:length] = Readable(buffers, length).read()
            super().write([copy], start, stable=stable)

    def _blocks(self, offset: int, length: int) -> tuple[int, int]:
        """Return where the blocks start and end that hold `length` bytes at `offset`."""
        block = self.block_sizes.logical
        return offset // block * block, -(-(offset + length) // block) * block


class _CannotError(OSError):
    """The host cannot do it, but in another way it can be done."""


def _succeeds_aligned(transfer: Callable[[], None]) -> bool:
    """Do a transfer; return False where its buffers are not aligned as O_DIRECT happens to need it."""
    try:
        transfer()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


_libc_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs
_libc_fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(ctypes.c_long))


def _filesystem(fd: int) -> int:
    """Return the magic number of a file's filesystem, by fstatfs(2), which Python lacks. Raises OSError."""
    status = (ctypes.c_long * 32)()  # larger than struct statfs, which begins with the number
    if _libc_fstatfs(fd, status):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return status[0]


def _can_read_nowait(fd: int) -> bool:
    """Tell whether the filesystem says what it has in memory. Raises OSError."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def _length(buffers: Sequence[memoryview]) -> int:
    return sum(map(len, buffers))


def _aligned_buffer(size: int) -> memoryview:
    """Return zeroes that begin where a page does; they are unmapped when the last view is gone."""
    return memoryview(mmap.mmap(-1, size))


_libc_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_libc_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2), which Python lacks; keep the file's size. Raises OSError, perhaps _CannotError."""
    if _libc_fallocate(fd, mode | _KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        raise (_CannotError if code in _CANNOT else OSError)(code, os.strerror(code))


def _discard(fd: int, offset: int, length: int) -> None:
    try:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))
    except OSError as error:
        raise (_CannotError if error.errno in _CANNOT else OSError)(*error.args) from None


def _device_block_sizes(fd: int) -> BlockSizes:
    def ask(request: int) -> int:
        value: int = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]
        return max(value, 0)

    return BlockSizes(*map(ask, (_BLKSSZGET, _BLKPBSZGET, _BLKIOMIN, _BLKIOOPT, _BLKALIGNOFF)))


def _filesystem_block_size(status: os.stat_result) -> int:
    """Return the block size of the device under a file, to which O_DIRECT aligns; a page if unknown."""
    device = Path(f"/sys/dev/block/{os.major(status.st_dev)}:{os.minor(status.st_dev)}")
    for queue in (device / "queue", device.resolve().parent / "queue"):  # a partition has its disk's
        with contextlib.suppress(OSError, ValueError):
            return int((queue / "logical_block_size").read_text())
    return PAGE_SIZE


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
