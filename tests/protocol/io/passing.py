"""Streams filled, emptied, and their descriptors counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.io import FdStream

if TYPE_CHECKING:
    from protocol.fds import OwnedFd

Pair = tuple[FdStream, FdStream]

LARGE = bytes(range(256)) * 8192
"""More than any socket's buffer takes."""


def close_all(fds: list[OwnedFd]) -> int:
    """Close descriptors; return how many there were."""
    for fd in fds:
        fd.close()
    return len(fds)


def fill(stream: FdStream) -> int:
    """Send until the kernel takes no more; return how many bytes it took."""
    count = 0
    try:
        while True:
            count += stream.send_nowait([bytes(4096)])
    except BlockingIOError:
        return count


async def receive_all(stream: FdStream) -> tuple[bytes, int]:
    """Receive to the end of the connection; return the bytes and how many descriptors came."""
    pieces: list[bytes] = []
    count = 0
    while True:
        data, fds = await stream.receive(65536)
        count += close_all(fds)
        if not data:
            return b"".join(pieces), count
        pieces.append(data)
