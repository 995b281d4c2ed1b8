"""A server that sends what a test says, right or wrong: for what no honest server can be made to do."""

from __future__ import annotations

import contextlib
import os
import socket
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from protocol.io import FdStream, listen
from protocol.ivshmem import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

Step = tuple[int | bytes, *tuple[str, ...]]
"""A message: its value (or its bytes as they are), and the kinds of the descriptors that go with it."""

US, PEER = 5, 2

VERSION: Step = (0,)
ID: Step = (US,)
MEMORY: Step = (-1, "memory")
OWN: Step = (US, "eventfd")
PEERS: Step = (PEER, "eventfd")

SETUP = (VERSION, ID, MEMORY, PEERS, PEERS, OWN, OWN)
"""What a correct server sends to peer 5 where peer 2 is there already, with two vectors."""

ALONE = (VERSION, ID, MEMORY, OWN, OWN)
"""What it sends where nobody else is there."""


def _memory(size: int) -> Callable[[], int]:
    def make() -> int:
        fd = os.memfd_create("test", os.MFD_CLOEXEC)
        os.truncate(fd, size)
        return fd

    return make


def _read_only() -> int:
    fd = _memory(4096)()
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


KINDS: dict[str, Callable[[], int]] = {
    "memory": _memory(4096),
    "empty": _memory(0),
    "small": _memory(4095),
    "huge": _memory((1 << 63) - 4096),
    "read-only": _read_only,
    "eventfd": lambda: os.eventfd(0),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_CLOEXEC),
    "device": lambda: os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
}
"""What a server may pass: how to open each."""


class ScriptedServer:
    """The server's end of one connection."""

    def __init__(self) -> None:
        self.stream: FdStream | None = None
        self.sent = trio.Event()
        """Set when the set-up was sent."""

    async def send(self, *steps: Step) -> None:
        """Send each step with one sendmsg, as the protocol wants it."""
        assert self.stream is not None
        for value, *kinds in steps:
            with ExitStack() as stack:
                fds = [stack.enter_context(OwnedFd(KINDS[kind]())).fileno() for kind in kinds]
                await self.stream.send(value if isinstance(value, bytes) else encode(value), fds)

    def close(self) -> None:
        """Close the connection, as a server that dies."""
        if self.stream is not None:
            self.stream.close()


@asynccontextmanager
async def scripted(path: Path, *setup: Step, then_close: bool = False) -> AsyncIterator[ScriptedServer]:
    """Listen at `path` during the block; send `setup` to the one who connects."""
    server = ScriptedServer()

    async def serve() -> None:
        server.stream = await listener.accept()
        with contextlib.suppress(BrokenPipeError):  # a client may have seen enough
            await server.send(*setup)
        if then_close:
            server.close()
        server.sent.set()

    with listen(str(path)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield server
            finally:
                nursery.cancel_scope.cancel()
                server.close()


def split(*steps: Step) -> tuple[Step, ...]:
    """Return the same bytes one by one; descriptors go with the first byte of their message."""
    result: list[Step] = []
    for value, *kinds in steps:
        data = value if isinstance(value, bytes) else encode(value)
        result += [(data[:1], *kinds), *((data[i : i + 1],) for i in range(1, len(data)))]
    return tuple(result)
