"""In what sizes a disk likes its requests, and in which ones its host needs them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from dataclasses import dataclass, replace

from protocol.virtio.blk import SECTOR_SIZE
from protocol.virtio.split import is_power_of_two

PAGE_SIZE = 4096

# <linux/fs.h>
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKALIGNOFF = 0x127A
_BLKPBSZGET = 0x127B

# <linux/stat.h>, <linux/fcntl.h>
_STATX_SIZE = 256
_STATX_DIOALIGN = 0x2000
_DIO_OFFSET_ALIGN = 156
"""Where it is in struct statx, which is the same for all processors."""
_AT_EMPTY_PATH = 0x1000


@dataclass(frozen=True)
class BlockSizes:
    """In what sizes a disk likes its requests, all in bytes; zero where it does not care."""

    logical: int = SECTOR_SIZE
    physical: int = PAGE_SIZE
    minimum_io: int = 0
    optimal_io: int = 0
    alignment_offset: int = 0
    """From the start of the disk to the first physical block that is aligned."""

    def at_least(self, size: int) -> BlockSizes:
        """Return the same with physical blocks that are not smaller than `size`."""
        return replace(self, physical=max(self.physical, size))


def checked_block_size(size: int) -> int:
    """Return `size`, where it can be a sector size. Raises ValueError, in words for the user."""
    if not SECTOR_SIZE <= size <= PAGE_SIZE or not is_power_of_two(size):
        raise ValueError(f"'{size}' is not a power of two from {SECTOR_SIZE} to {PAGE_SIZE}")
    return size


def block_sizes(fd: int, logical: int | None) -> BlockSizes:
    """Return those of a disk: `logical` if given, else those of the device, or 512 for a file.

    A file's content is of a disk that had sectors of its own, 512 bytes nearly always, whatever the file
    system that it happens to be on needs. Raises ValueError where `logical` is not a sector size,
    and OSError.
    """
    sizes = _device_block_sizes(fd) if _is_block_device(fd) else BlockSizes()
    if logical is None:
        return sizes
    return replace(sizes, logical=checked_block_size(logical)).at_least(logical)


def direct_alignment(fd: int) -> int:
    """Return to what O_DIRECT, which `fd` is open with, needs places and lengths aligned. Raises OSError."""
    if _is_block_device(fd):
        return _device_block_sizes(fd).logical
    return max(_told_alignment(fd) or _tried_alignment(fd), SECTOR_SIZE)


def _is_block_device(fd: int) -> bool:
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def _device_block_sizes(fd: int) -> BlockSizes:
    def ask(request: int) -> int:
        value: int = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]
        return max(value, 0)

    return BlockSizes(*map(ask, (_BLKSSZGET, _BLKPBSZGET, _BLKIOMIN, _BLKIOOPT, _BLKALIGNOFF)))


def _told_alignment(fd: int) -> int:
    """Return what the file system says (statx(2), which Python lacks before 3.15); 0: nothing."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    result = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, ctypes.c_uint(_STATX_DIOALIGN), result):
        return 0  # an old libc or kernel
    (mask,) = struct.unpack_from("=I", result)
    (alignment,) = struct.unpack_from("=I", result, _DIO_OFFSET_ALIGN)
    return alignment if mask & _STATX_DIOALIGN else 0


def _tried_alignment(fd: int) -> int:
    """Return the smallest that reading takes; a page where there are no data that show it.

    Linux says nothing of the alignment of what reads a hole, as all of a new file is.
    """
    try:
        offset = os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        return PAGE_SIZE
    room = memoryview(mmap.mmap(-1, PAGE_SIZE))
    size = SECTOR_SIZE
    while size < PAGE_SIZE:
        try:
            os.preadv(fd, [room[:size]], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            break
        size *= 2
    return size
