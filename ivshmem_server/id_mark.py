"""The ids of all peers that hold a shared memory, kept by the kernel as long as one does.

A server that was killed leaves its peers behind: they keep memory and doorbells, and ids that the next
server knows nothing of. But they were passed its open file, and keep that, mapped at least; a lock of this
open file (F_OFD_SETLK) lives as long as they, and its length says how many ids there were.
"""

from __future__ import annotations

import fcntl
import logging
from typing import TYPE_CHECKING

from protocol.io.file_lock import other_lock, set_lock
from protocol.ivshmem import MAX_ID

if TYPE_CHECKING:
    from protocol.fds import OwnedFd

_log = logging.getLogger("ivshmem_server")


def mark_ids(fd: OwnedFd, count: int) -> None:
    """Note that peers who hold the open file `fd` have ids below `count`."""
    try:
        set_lock(fd.fileno(), fcntl.F_RDLCK, 0, count)
    except OSError as error:
        _log.debug("ids are not marked: %s", error.strerror)


def ids_of_others(fd: OwnedFd) -> int:
    """Return below which number the ids are of those who have another open file of it; 0 without any."""
    found = 0
    try:
        while found <= MAX_ID and (lock := other_lock(fd.fileno(), found, MAX_ID + 1 - found)):
            found = min(lock.start + lock.length, MAX_ID + 1) if lock.length else MAX_ID + 1
    except OSError as error:
        _log.debug("ids of earlier peers are not known: %s", error.strerror)
    return found
