"""Clients for tests of the server: one that keeps to the protocol, and sockets for those that do not."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ivshmem_server import IvshmemServer, SharedMemory
from protocol.io import FdStream, connect, listen
from protocol.ivshmem import (
    MESSAGE_SIZE,
    ClientSession,
    IdAssigned,
    MemoryReceived,
    PeerDisconnected,
    VectorReceived,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

SECONDS = 60
"""How long anything may take before a test fails."""


@asynccontextmanager
async def serving(path: Path, **options: Any) -> AsyncIterator[IvshmemServer]:
    """Run a server at `path` in this process for the length of the block."""
    with SharedMemory.memfd(1 << 20) as memory, listen(str(path)) as listener:
        server = IvshmemServer(memory, **options)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, listener)
                yield server
                nursery.cancel_scope.cancel()


class Client:
    """A client that reads when it is told to, and keeps what it learnt. Close it with `close()`."""

    def __init__(self, stream: FdStream) -> None:
        self.stream = stream
        self.session = ClientSession()
        self.id = -1
        self.messages = 0
        self.vectors: dict[int, int] = {}
        self.eventfd_inodes: dict[int, list[int]] = {}
        self.left: list[int] = []
        self.memory_size = 0

    @classmethod
    async def connect(cls, path: Path) -> Client:
        """Connect, and read nothing yet."""
        return cls(await connect(str(path)))

    @classmethod
    async def joined(cls, path: Path, vectors: int = 1) -> Client:
        """Connect, and read the set-up to its end."""
        client = await cls.connect(path)
        while client.session.vectors < vectors:
            await client.read()
        return client

    async def read(self) -> None:
        """Read one message. Raises RemoteProtocolError as the session does."""
        while True:
            events = self.session.receive(*await self.stream.receive(self.session.bytes_wanted))
            for event in events:
                self._take(event)
            if self.session.bytes_wanted == MESSAGE_SIZE:
                break
        self.messages += 1

    async def read_until_knows(self, *peers: int) -> None:
        """Read until exactly `peers` are there besides us, each with as many vectors as we have."""
        while self.vectors != dict.fromkeys((self.id, *peers), self.session.vectors):
            await self.read()

    def _take(self, event: object) -> None:
        match event:
            case IdAssigned(id_):
                self.id = id_
            case MemoryReceived(fd):
                self.memory_size = os.fstat(fd.fileno()).st_size
                fd.close()
            case VectorReceived(peer, vector, fd):
                self.vectors[peer] = vector + 1
                self.eventfd_inodes.setdefault(peer, []).append(eventfd_id(fd.fileno()))
                fd.close()
            case PeerDisconnected(peer):
                del self.vectors[peer]
                self.left.append(peer)

    def close(self) -> None:
        """Leave."""
        self.session.close()
        self.stream.close()


def eventfd_id(fd: int) -> int:
    """Return the kernel's number of an eventfd, the same in every process that was passed it."""
    with open(f"/proc/self/fdinfo/{fd}") as info:  # noqa: PTH123 -- procfs never waits
        for line in info:
            if line.startswith("eventfd-id:"):
                return int(line.split()[1])
    raise AssertionError(f"descriptor {fd} is not an eventfd")


async def first_value(stream: FdStream) -> int:
    """Return the value of the first message: the protocol version, or a refusal."""
    data, _ = await stream.receive_exactly(8)
    return decode(data)
