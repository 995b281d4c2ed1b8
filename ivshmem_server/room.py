"""How much room a file system has for the shared memory."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from protocol.fds import OwnedFd

_HUGETLBFS_MAGIC = 0x958458F6
_TMPFS_MAGIC = 0x01021994
"""Of linux/magic.h."""
_MAX_BLOCKS = 1 << 62
_STATFS_BYTES = 256
"""More than a struct statfs has anywhere; it begins with the magic number."""

_libc_fstatfs = ctypes.CDLL(None, use_errno=True).fstatfs
_libc_fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


class FileRoom(NamedTuple):
    """What a file system can hold, bytes, and what of that is free; both are 0 where it has no size.

    The kernel's own tmpfs, where a memfd lives, has none: like the memory of guests, what is in it may
    exceed what the machine has, as long as it is not filled.
    """

    capacity: int
    free: int


def file_room(fd: OwnedFd) -> FileRoom:
    """Return what the file system below `fd` has room for."""
    status = os.fstatvfs(fd.fileno())
    if status.f_blocks > _MAX_BLOCKS:  # as a hugetlbfs says that has a least size and no other
        return FileRoom(0, 0)
    return FileRoom(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


def unfilled(fd: OwnedFd) -> int:
    """Return how many bytes of a file have no memory or disk block yet: a write to them needs it."""
    status = os.fstat(fd.fileno())
    return max(0, status.st_size - status.st_blocks * 512)


def huge_page_size(fd: OwnedFd) -> int | None:
    """Return the size of a file's pages where these are huge, None for those of any other file system."""
    return os.fstatvfs(fd.fileno()).f_bsize if _magic(fd) == _HUGETLBFS_MAGIC else None


def is_in_memory(fd: OwnedFd) -> bool:
    """Tell whether a file is nowhere but in memory, of ordinary pages: on a tmpfs, as a memfd is."""
    return _magic(fd) == _TMPFS_MAGIC


def _magic(fd: OwnedFd) -> int:
    """Return the type of a file system (statfs(2)), which Python does not tell, and /proc not everywhere."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc_fstatfs(fd.fileno(), buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
