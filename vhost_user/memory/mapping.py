"""Shared files mapped into this process, at any offset and on any filesystem."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from protocol.io import exhaustion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd

# How it works: a Mapping is an mmap that Python unmaps once neither it nor a view into it is referred to.
# `start` is a bare address, valid as long as that. Nothing here keeps a descriptor (before Python 3.13,
# mmap keeps a duplicate of its own, closed with the mapping).

_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FAILED = ctypes.c_void_p(-1).value

_libc_mremap = ctypes.CDLL(None, use_errno=True).mremap
_libc_mremap.restype = ctypes.c_void_p
_libc_mremap.argtypes = (*(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p),)

_KEEP_NO_FD: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""A mapping needs no descriptor; before Python 3.13 it keeps a duplicate nevertheless."""


class MappingError(ValueError):
    """A file cannot be mapped as it was asked for. One line that says why."""


class Mapping(mmap.mmap):
    """A mapping, unmapped when the last view into it is gone."""

    start: int
    """The address in this process of the byte that was asked for first."""
    owner: Any
    """Whom a view into the mapping belongs to; None until somebody says."""


def map_shared(fd: OwnedFd, size: int, offset: int) -> memoryview:
    """Map `size` bytes at byte `offset` of a file, readable and writable; its `.obj` is the Mapping.

    The descriptor may be closed afterwards. Raises MappingError.
    """
    status = os.fstat(fd.fileno())
    if size <= 0:
        raise MappingError(f"{size} bytes cannot be mapped")
    if stat.S_ISREG(status.st_mode) and offset + size > status.st_size:
        raise MappingError(f"{size} bytes at {offset:#x} reach past the end of a file of {status.st_size}")
    # A hugetlbfs file takes offsets and lengths in huge pages only, and says their size here.
    page = max(os.fstatvfs(fd.fileno()).f_bsize, mmap.ALLOCATIONGRANULARITY)
    lead = offset % page
    length = -(-(lead + size) // page) * page
    if stat.S_ISREG(status.st_mode) and offset - lead + length > status.st_size:
        length = lead + size
    try:
        mapping = Mapping(fd.fileno(), length, mmap.MAP_SHARED, offset=offset - lead, **_KEEP_NO_FD)
    except OSError as error:
        reason = exhaustion.cause_and_remedy(error)
        raise MappingError(f"{size} bytes at {offset:#x} cannot be mapped: {reason}") from error
    except (OverflowError, ValueError) as error:
        raise MappingError(f"{size} bytes at {offset:#x} cannot be mapped: {error}") from error
    mapping.start = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) + lead
    mapping.owner = None
    return memoryview(mapping)[lead : lead + size]


def map_together(views: Sequence[memoryview]) -> memoryview:
    """Map the memory of writable views into shared mappings once more, in one piece; return that.

    Each but the last has to end where a page does, and each but the first to begin there. Its `.obj` is a
    Mapping of its own: it needs those of `views` no longer. Raises MappingError.
    """
    lead = address_of(views[0]) % mmap.PAGESIZE
    length = lead + sum(map(len, views))
    whole = Mapping(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole.owner = None
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    whole.start = start + lead
    at = lead
    for view in views:
        place = address_of(view)
        if (place - start - at) % mmap.PAGESIZE:
            raise MappingError(f"pages of {mmap.PAGESIZE} bytes lie at odd addresses")
        # Of a shared mapping, the old size 0 makes a second mapping of the same pages.
        size, extra = len(view), at % mmap.PAGESIZE
        flags = _MREMAP_MAYMOVE | _MREMAP_FIXED
        if _libc_mremap(place - extra, 0, size + extra, flags, start + at - extra) == _FAILED:
            raise MappingError(os.strerror(ctypes.get_errno()))
        at += size
    return memoryview(whole)[lead:length]


def address_of(view: memoryview) -> int:
    """Return the address in this process of a writable view's first byte."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))
