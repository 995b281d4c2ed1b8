"""The dirty log of a live migration: the pages of the guest that a back-end wrote to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user.memory.atomics import or_byte
from vhost_user.memory.mapping import address_of, map_shared

if TYPE_CHECKING:
    from protocol.fds import OwnedFd

PAGE_SHIFT = 12
"""The bits of an address within a page of the dirty log."""


# How it works: the log is shared with the front-end, which clears bits while this process sets them: a bit
# is set by an atomic or of its byte, never by a load and a store. A page is marked after it was written and
# before the driver is told, so that a front-end which copies a page in between copies it once more.
# `_address` is valid as long as `_view`, which keeps the mapping.


class DirtyLogError(Exception):
    """A page to mark is outside the log. One line that names it."""


class DirtyLog:
    """The log of VHOST_USER_SET_LOG_BASE: a bit for each page of 4096 bytes, from guest address 0.

    Other processes set bits in it too, and the front-end clears them meanwhile.
    """

    def __init__(self, fd: OwnedFd, size: int, offset: int) -> None:
        """Map `size` bytes at `offset`, and close `fd` in any case. Raises MappingError."""
        with fd:
            self._view = map_shared(fd, size, offset)
        self._address = address_of(self._view)
        self.size = size

    def mark(self, guest_address: int, length: int) -> None:
        """Mark the pages of `length` bytes as written. Raises DirtyLogError beyond the end of the log."""
        if length <= 0:
            return
        first, last = guest_address >> PAGE_SHIFT, guest_address + length - 1 >> PAGE_SHIFT
        if first < 0 or last >> 3 >= self.size:
            raise DirtyLogError(
                f"{length} bytes written at {guest_address:#x} are outside the dirty log of {self.size} bytes"
            )
        for byte in range(first >> 3, (last >> 3) + 1):
            bits = 0xFF
            if byte == first >> 3:
                bits &= 0xFF << (first & 7)
            if byte == last >> 3:
                bits &= 0xFF >> 7 - (last & 7)
            or_byte(self._address + byte, bits)
