"""The shared memory, mapped: from a server, or from a file without a server."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

from protocol.fds import Closing, OwnedFd
from protocol.io.exhaustion import cause_and_remedy
from protocol.io.posix_memory import SHM_DIRECTORY
from protocol.ivshmem.registers import MIN_MEMORY_SIZE


class UnusableMemoryError(Exception):
    """What should be the shared memory cannot be. The text is one line that says why."""


class PlainPeer(Closing):
    """Shared memory without a server, as QEMU's ivshmem-plain has it: without rings.

    `open_memory()` makes one. `close()`, or the end of a `with` block, unmaps the memory.
    """

    def __init__(self, fd: OwnedFd, *, readonly: bool = False) -> None:
        """Map all of the file `fd`, and close `fd` in every case. Raises UnusableMemoryError."""
        with fd:
            self._map = _map(fd.fileno(), readonly=readonly)
        self.memory = memoryview(self._map)
        """The shared memory. `memory.cast("I")[n]`, and "H", "Q" likewise, is one load or store, never
        torn; a slice is copied in pieces, and somebody who reads it meanwhile sees some old, some new.

        If somebody truncates the file, access to what was cut off kills the process with SIGBUS, as
        it does a QEMU; only a memfd sealed against resizing (`ivshmem-server --memfd`) rules that out.
        """

    def close(self) -> None:
        """Release the memory and unmap it.

        Where other views of it are still in use, the map goes when the last of them does.
        """
        with contextlib.suppress(BufferError):
            self.memory.release()
            self._map.close()


def open_memory(name: str | os.PathLike[str], *, readonly: bool = False) -> PlainPeer:
    """Map a POSIX shared memory object (a name without a slash) or a file (a path with one).

    The object is that of `-object memory-backend-file,mem-path=...,share=on`. The caller closes the
    peer. Raises OSError where it cannot be opened, UnusableMemoryError where it cannot be mapped.
    """
    path = memory_path(name)
    return PlainPeer(
        OwnedFd(os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)), readonly=readonly
    )


def memory_path(name: str | os.PathLike[str]) -> Path:
    """Return the file that `open_memory(name)` opens."""
    return Path(name) if "/" in os.fspath(name) else SHM_DIRECTORY / name


def _map(fd: int, *, readonly: bool) -> mmap.mmap:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnusableMemoryError("no regular file, memfd or shared memory object")
    if status.st_size < MIN_MEMORY_SIZE:
        raise UnusableMemoryError(f"{status.st_size} bytes long; {MIN_MEMORY_SIZE} are the least")
    protection = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
    try:
        return mmap.mmap(fd, status.st_size, flags=mmap.MAP_SHARED, prot=protection)
    except (OSError, OverflowError) as error:
        reason = cause_and_remedy(error) if isinstance(error, OSError) else "beyond the address space"
        raise UnusableMemoryError(f"{status.st_size} bytes that cannot be mapped: {reason}") from None
