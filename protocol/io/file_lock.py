"""Locks of open file descriptions (fcntl(2), F_OFD_SETLK).

Such a lock belongs to the open file itself: whoever was passed the descriptor has it too, and it ends
when the last of them has closed it, or died.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import NamedTuple

_FLOCK = struct.Struct("hhqqi0q")
"""struct flock: type, whence, start, length, pid."""


class LockedRange(NamedTuple):
    """Bytes of a file that somebody has locked; `length` 0 is all from `start` on."""

    start: int
    length: int


def set_lock(fd: int, kind: int, start: int, length: int) -> None:
    """Lock these bytes for `fd`'s open file: `kind` is F_RDLCK (shared), F_WRLCK or F_UNLCK.

    Raises BlockingIOError or PermissionError where another open file has a lock in the way, OSError where
    the file system knows no locks.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def other_lock(fd: int, start: int, length: int) -> LockedRange | None:
    """Return a lock that another open file of `fd`'s file has among these bytes, None where none has.

    Raises OSError where the file system knows no locks.
    """
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))
    return None if kind == fcntl.F_UNLCK else LockedRange(start, length)
