"""A disk that is a raw file or a block device of the host, through the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
from typing import TYPE_CHECKING

from vhost_user.buffers import IOV_MAX, Readable
from vhost_user.devices.blk.parallel_reads import ParallelReader, processors
from vhost_user.devices.blk.sizes import block_sizes

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from protocol.fds import OwnedFd
    from vhost_user.devices.blk.parallel_reads import Read

_ZEROES = 1 << 20
"""Bytes that are written at a time where nothing cheaper makes zeroes."""

_BLKDISCARD = 0x1277
"""<linux/fs.h>"""

# <linux/falloc.h>
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10

QUICK_FILESYSTEMS = frozenset({0x01021994, 0x858458F6, 0x958458F6, 0xEF53})
"""tmpfs, ramfs, hugetlbfs and ext4 (<linux/magic.h>): what these do without RWF_NOWAIT, which the first
three do not know, and ext4 for reads only, stays in memory. Not so NFS, FUSE and the like."""

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS})
"""How kernels and filesystems say that they cannot do it at all, or not at this place."""

_SERIAL_PREFIX = "qc-"
_SERIAL_BYTES = 8


class FileDisk:
    """A `Disk` that is a raw file or a block device, through the host's page cache."""

    is_direct = False

    def __init__(
        self,
        fd: OwnedFd,
        *,
        path: str = "",
        read_only: bool = False,
        logical_block_size: int | None = None,
    ) -> None:
        """Own `fd` from now on, unless this raises OSError, or ValueError for what can be no disk.

        `path` is what it was opened by. `logical_block_size` is by default that of the device, and 512
        for a file.
        """
        status = os.fstat(fd.fileno())
        self._is_block_device = stat.S_ISBLK(status.st_mode)
        if not self._is_block_device and not stat.S_ISREG(status.st_mode):
            raise ValueError("it is neither a file nor a block device; give a raw file or a block device")
        self.name = path or "the disk"
        self.serial = default_serial(fd.fileno(), path)
        self.read_only = read_only
        self._owner = fd
        self._fd = fd.fileno()
        # Where a filesystem does not know the flag, but is quick without, we do without. Elsewhere it
        # refuses what has the flag, and all requests come to be done in threads.
        self._read_flags = self._write_flags = os.RWF_NOWAIT
        self._is_quick = self._is_block_device or _filesystem(self._fd) in QUICK_FILESYSTEMS
        if self._is_quick and not self.is_direct and not _can_read_nowait(self._fd):
            self._read_flags = 0
        self._parallel_reader: ParallelReader | None = None
        self.shares_reads = not self.is_direct and processors() > 1
        self.block_sizes = block_sizes(self._fd, logical_block_size)
        self.size = 0
        self.rest = 0
        """Bytes after the last whole block, which are not part of the disk."""
        self.measure()

    def fileno(self) -> int:
        """Return its file descriptor, which stays the disk's. Raises ValueError once it is closed."""
        return self._owner.fileno()

    def ends(self, head: int, tail: int) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of the file, so many if there are. Raises OSError."""
        size = self.size + self.rest
        return os.pread(self._fd, head, 0), os.pread(self._fd, tail, max(size - tail, 0))

    def direct_file(self) -> tuple[int, int] | None:
        """Return the file to read from at once, and preadv's flags for what is in memory."""
        return self._fd, self._read_flags

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        """Read what is in memory of `length` bytes; return how much. Raises OSError for nothing."""
        return os.preadv(self._fd, buffers, offset, self._read_flags)

    def read_each_now(self, reads: Sequence[Read]) -> Generator[tuple[int, int], None, None]:
        """Do what `read_now()` does for one or more reads, with the help of threads.

        Yields the place in `reads` of each as it is done, and how much it read: -1 for an error.
        """
        if self._parallel_reader is None:
            self._parallel_reader = ParallelReader(processors())
        return self._parallel_reader.preadv(self._fd, reads, self._read_flags)

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
        read_all(self._fd, buffers, offset)

    def write(self, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
        """Write all the buffers. A `stable` write has reached the medium when this returns."""
        write_all(self._fd, buffers, offset, stable=stable)

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
        if self._zero_range(offset, length, unmap=unmap):
            return
        zeroes = aligned_buffer(min(length, _ZEROES))
        end = offset + length
        for start in range(offset, end, _ZEROES):
            self.write([zeroes[: end - start]], start)

    def _zero_range(self, offset: int, length: int, *, unmap: bool) -> bool:
        """Have the host make zeroes; return False where it cannot."""
        for mode in (_PUNCH_HOLE, _ZERO_RANGE) if unmap else (_ZERO_RANGE,):
            with contextlib.suppress(_CannotError):
                _fallocate(self._fd, mode, offset, length)
                return True
        return False

    def measure(self) -> bool:
        """Look at the size again; return whether it has changed. Raises OSError."""
        before = self.size
        size = os.lseek(self._fd, 0, os.SEEK_END)
        self.rest = size % self.block_sizes.logical
        self.size = size - self.rest
        return self.size != before

    def close(self) -> None:
        """Close the file."""
        if self._parallel_reader is not None:
            self._parallel_reader.close()
        self._owner.close()


def read_all(fd: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Fill all the buffers from a file. Raises OSError, also where it ends before."""
    rest = Readable(buffers, length_of(buffers))
    while rest.remaining:
        done = os.preadv(fd, rest.buffers[:IOV_MAX], offset)
        if not done:
            raise OSError(errno.EIO, "the disk has become smaller")
        rest.advance(done)
        offset += done


def write_all(fd: int, buffers: Sequence[memoryview], offset: int, *, stable: bool = False) -> None:
    """Write all the buffers to a file; if `stable`, to its medium. Raises OSError."""
    flags = os.RWF_DSYNC if stable else 0
    rest = Readable(buffers, length_of(buffers))
    while rest.remaining:
        done = os.pwritev(fd, rest.buffers[:IOV_MAX], offset, flags)
        rest.advance(done)
        offset += done


class _CannotError(OSError):
    """The host cannot do it, but in another way it can be done."""


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


def length_of(buffers: Sequence[memoryview]) -> int:
    """Return how many bytes there are."""
    return sum(map(len, buffers))


def aligned_buffer(size: int) -> memoryview:
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


def default_serial(fd: int, path: str = "") -> str:
    """Return a serial number for a disk: 19 characters, the same whenever it is opened. Raises OSError.

    That of a file goes by the file itself, and stays when it is renamed; a copy has another one. That of a
    block device, whose numbers may change when its host starts again, goes by the path that names it.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        identity = f"device {os.path.abspath(path) if path else status.st_rdev}"  # noqa: PTH100 -- a pure text
    else:
        identity = f"file {os.fstatvfs(fd).f_fsid or status.st_dev} {status.st_ino}"
    digest = hashlib.blake2b(os.fsencode(identity), digest_size=_SERIAL_BYTES)
    return _SERIAL_PREFIX + digest.hexdigest()
