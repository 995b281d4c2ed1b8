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
    """What leaving a `with` block closes. A subclass says how with its `close()`."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of what the object holds; to no effect the second time."""
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
    """A file descriptor that somebody owns.

    Whoever holds the object owns the descriptor and closes it with `close()` (which may be called
    again, to no effect), by leaving a `with` block, or passes it on with `detach()`. One that is
    garbage-collected still open is closed then, with a ResourceWarning: an owner was lost.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        """Take ownership of the open descriptor `fd`. Raises ValueError for a negative number."""
        self._fd = -1
        if fd < 0:
            raise ValueError(f"{fd} is no file descriptor")
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, still owned by this object. Raises ValueError once closed or detached."""
        if self._fd < 0:
            raise ValueError("the file descriptor is closed or was detached")
        return self._fd

    @property
    def closed(self) -> bool:
        """True once the descriptor was closed or detached."""
        return self._fd < 0

    def detach(self) -> int:
        """Give the descriptor away: return it and forget it. The caller closes it."""
        fd = self.fileno()
        self._fd = -1
        return fd

    def dup(self) -> OwnedFd:
        """Return a second owner of the same open file, close-on-exec set. Raises OSError at the fd limit."""
        return OwnedFd(os.dup(self.fileno()))

    def close(self) -> None:
        """Close the descriptor if it is still owned."""
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
