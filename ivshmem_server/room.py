"""How much memory there is room for, as far as the kernel tells: /proc and /sys may be hidden from us."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_HUGETLBFS_MAGIC = 0x958458F6
"""Of linux/magic.h."""
_STATFS_BYTES = 256
"""More than a struct statfs has anywhere; it begins with the magic number."""

_libc_statfs = ctypes.CDLL(None, use_errno=True).statfs
_libc_statfs.argtypes = (ctypes.c_char_p, ctypes.c_char_p)


def huge_page_size(directory: str) -> int | None:
    """Return the page size of a hugetlbfs, None for any other file system. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc_statfs(os.fsencode(directory), buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), directory)
    if ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF != _HUGETLBFS_MAGIC:
        return None
    return os.statvfs(directory).f_bsize


def machine_memory() -> int | None:
    """Return the bytes of this machine's memory and swap, None where they are hidden (/proc/meminfo)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(sizes[name].split()[0]) << 10 for name in ("MemTotal", "SwapTotal") if name in sizes)
