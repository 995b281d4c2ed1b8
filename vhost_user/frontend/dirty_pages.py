"""DirtyPages: the log of the pages that a back-end wrote to, from the front-end's side."""

from __future__ import annotations

import os

from protocol.fds import OwnedFd
from vhost_user.memory.mapping import map_shared

PAGE = 4096

_BYTES_A_LOG_BYTE = 8 * PAGE


class DirtyPages:
    """A bit for each page of 4096 bytes of guest memory, from address 0 on. Close it with `close()`."""

    def __init__(self, end: int) -> None:
        """Make a log for guest memory up to the address `end`."""
        self.size = -(-end // _BYTES_A_LOG_BYTE // PAGE) * PAGE
        self.fd = OwnedFd(os.memfd_create("dirty-log", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), self.size)
        self._view = map_shared(self.fd, self.size, 0)

    def pages(self) -> set[int]:
        """Return the numbers of the pages that are marked: guest addresses, divided by 4096."""
        marked = int.from_bytes(self._view, "little")
        return {bit for bit in range(marked.bit_length()) if marked >> bit & 1}

    def clear(self) -> None:
        """Unmark all pages. What the back-end marks at the same time may get lost."""
        self._view[:] = bytes(self.size)

    def close(self) -> None:
        """Close the file, and unmap it."""
        self.fd.close()
        self._view = memoryview(b"")
