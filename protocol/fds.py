"""OwnedFd: a file descriptor with exactly one owner, closed exactly once."""

from __future__ import annotations

import os
import socket
import struct
import warnings
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closing:
    """An object that is closed at the end of a `with` block, by the `close()` of its class."""

    __slots__ = ()

    def close(self) -> None:
        """Release all that the object owns; a second call has no effect."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OwnedFd(Closing):
    """A file descriptor with an owner.

    The owner of the object owns the descriptor, and closes it with `close()` (a second call has no effect)
    or at the end of a `with` block, or passes it on with `detach()`. An object that is garbage-collected
    while it is open closes the descriptor, with a ResourceWarning: its owner has lost it.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take ownership of the open descriptor `fd`. Raises ValueError for a negative number."""
        self._fd = -1
        if fd < 0:
            raise ValueError(f"{fd} is not a file descriptor")
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which stays this object's. Raises ValueError after close() or detach()."""
        if self._fd < 0:
            raise ValueError("the file descriptor is closed or was detached")
        return self._fd

    @property
    def closed(self) -> bool:
        """True after the descriptor was closed or detached."""
        return self._fd < 0

    def detach(self) -> int:
        """Return the descriptor, which is the caller's to close from now on."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def dup(self) -> OwnedFd:
        """Return a second owner of the same open file, close-on-exec set. Raises OSError at the fd limit."""
        return OwnedFd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close the descriptor if this object still owns it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __repr__(self) -> str:
        return f"OwnedFd({self._fd})" if self._fd >= 0 else "OwnedFd(closed)"

    def __del__(self) -> None:
        if self._fd >= 0:
            try:
                warnings.warn(
                    f"file descriptor {self._fd} was never closed", ResourceWarning, source=self, stacklevel=2
                )
            finally:
                self.close()  # also where warnings are errors


def rights(*fds: int) -> list[tuple[int, int, bytes]]:
    """Return the ancillary data of one sendmsg that passes `fds` (unix(7), SCM_RIGHTS)."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
