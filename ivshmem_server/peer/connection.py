"""connect(): joins an ivshmem server, and listens to it in the background of a block."""

# How it works: `connect()` receives until the set-up is complete, and only then starts the block. While the
# block runs, a second task, the only reader of the stream, hands each event to the peer. The peer changes
# between two awaits of that task alone, so that the block sees no half of a change. At the end of the
# connection this task ends, and the peer works on: memory and eventfds lead to the other peers directly.
#
# Descriptors: the stream owns those that it received until the session takes them, the session those of
# messages that are incomplete, the peer the eventfds and the mapping (the memory's descriptor is closed as
# soon as it is mapped). The end of the block closes all three, in that order, however it ends.

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ivshmem_server.peer.peer import Peer
from protocol import io
from protocol.errors import RemoteProtocolError
from protocol.fds import Closing
from protocol.io.background import beside
from protocol.io.stream import MAX_FDS
from protocol.ivshmem import MAX_VECTORS, ClientSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUIET_SECONDS = 0.1
"""How long a server is quiet once it has sent all our vectors. Nothing in the protocol tells."""

MISSING_SECONDS = 1.0
"""How long a server is quiet before vectors that we expect are missing: a busy server is not an error."""

SETUP_SECONDS = 10.0

RETRY_SECONDS = 0.05
"""How often to look for a server that is not up yet."""


@asynccontextmanager
async def connect(
    path: str | os.PathLike[str],
    *,
    vectors: int | None = None,
    quiet: float = QUIET_SECONDS,
    setup_timeout: float = SETUP_SECONDS,
    wait_for_server: float | None = None,
) -> AsyncIterator[Peer]:
    """Join the ivshmem server at `path` for the length of an `async with` block, which gets the Peer.

    `vectors` is how many vectors we use, as for a QEMU device: the descriptors of more are closed,
    fewer are an error, and the set-up ends as soon as they have come. Without it we use as many as
    the server gives, and the set-up ends when we have as many as another peer, or else `quiet` seconds
    after the last of them; what comes later is taken too. A set-up that
    takes longer than `setup_timeout` seconds is an error. `wait_for_server` is for how many seconds
    a server that is not up yet is waited for; None for not at all.

    Raises OSError where there is no server, RemoteProtocolError for one that breaks the protocol
    (while the block runs too: it is cancelled then). What the block raises comes out as it is. At
    the end of the block the peer is closed: it has left, its memory is released.
    """
    if vectors is not None and not 1 <= vectors <= MAX_VECTORS:
        raise ValueError(f"vectors={vectors}: 1..{MAX_VECTORS} are possible")
    stream = await _reach(os.fspath(path), setup_timeout, wait_for_server)
    with _Connection(stream, vectors) as connection:
        await connection.set_up(quiet, setup_timeout)
        async with beside(connection.listen):
            yield connection.peer


class _Connection(Closing):
    """A stream from a server, and the peer that its messages make. `close()` closes both."""

    def __init__(self, stream: io.FdStream, vectors: int | None) -> None:
        self.peer = Peer(vectors)
        self._stream = stream
        self._session = ClientSession()
        self._vectors = vectors
        self._heard = False

    async def receive(self) -> bool:
        """Wait for one read and take what it completes; return False at the end of the connection."""
        # Room for more descriptors than are allowed: else a server's mistake looks like our fd limit.
        data, fds = await self._stream.receive(self._session.bytes_wanted, MAX_FDS)
        self._heard = True
        for event in self._session.receive(data, fds):
            self.peer.take(event)
        if not data:
            self.peer.server_gone()
        return bool(data)

    async def listen(self) -> None:
        """Take what the server tells until it has gone."""
        while await self.receive():
            pass

    async def set_up(self, quiet: float, timeout: float) -> None:
        """Receive until we have our id, the memory and our vectors. Raises RemoteProtocolError."""
        try:
            with trio.fail_after(timeout):
                await self._receive_all(quiet)
        except trio.TooSlowError:
            missing = self._session.expected
            whose = "" if self._heard else "; is it the socket of an ivshmem server?"
            raise RemoteProtocolError(
                f"the set-up took over {timeout:g} s, and {missing} had not come{whose}"
            ) from None
        got, expected = self.peer.vectors, self._vectors or 1
        if got < expected and not self.peer.connected:
            raise RemoteProtocolError(
                f"the server closed during set-up, where our vectors were due ({got} of {expected} had come)"
            )
        if got < expected:
            raise RemoteProtocolError(
                f"the server gives {got} of the {expected} vectors that were expected;"
                f" start it with -n {expected}, or expect {got}"
            )

    async def _receive_all(self, quiet: float) -> None:
        while self.peer.vectors != self._due():
            with trio.move_on_after(self._patience(quiet)) as pause:
                if not await self.receive():
                    return
            if pause.cancelled_caught:
                return

    def _due(self) -> int | None:
        """Return how many vectors end the set-up: as a rule, a server gives everybody as many."""
        return self._vectors or max(self.peer.peers.values(), default=None)

    def _patience(self, quiet: float) -> float:
        """Return how many seconds without a message end the set-up."""
        if not self.peer.vectors:
            return float("inf")
        return quiet if self._vectors is None else max(quiet, MISSING_SECONDS)

    def close(self) -> None:
        self._stream.close()
        self._session.close()
        self.peer.close()


async def _reach(path: str, timeout: float, patience: float | None) -> io.FdStream:
    """Connect, within `patience` seconds of a server that is not up. Raises OSError, RemoteProtocolError."""
    deadline = trio.current_time() + (patience or 0)
    while True:
        try:
            with trio.fail_after(timeout):
                return await io.connect(path)
        except trio.TooSlowError:
            raise RemoteProtocolError(f"the server did not accept us within {timeout:g} s") from None
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if trio.current_time() >= deadline:
                error.filename = path
                raise
        except OSError as error:
            error.filename = path
            raise
        await trio.sleep(RETRY_SECONDS)
