"""A host process as an ivshmem peer: the shared memory, rings, and the other peers."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from ivshmem_server.peer.changes import Change, PeerJoined, PeerLeft, Subscriptions
from ivshmem_server.peer.memory import PlainPeer, UnusableMemoryError
from protocol.errors import RemoteProtocolError
from protocol.io import EventFd
from protocol.ivshmem import (
    MAX_VECTORS,
    Event,
    IdAssigned,
    MemoryReceived,
    PeerDisconnected,
    VectorReceived,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from protocol.fds import OwnedFd


class NoSuchPeerError(LookupError):
    """The peer to be rung is not connected. The text is one line that says who is."""


class NoSuchVectorError(NoSuchPeerError):
    """The peer has fewer vectors. The text is one line that says how many."""


class Peer:
    """A peer of an ivshmem server. `connect()` makes one, and closes it at the end of its block.

    Rings and waits go directly between the peers: they work on when the server has gone.
    """

    def __init__(self, max_vectors: int | None = None) -> None:
        """`max_vectors` is how many vectors a peer may have; the descriptors of more are closed."""
        self.id = -1
        """Our id, 0 to 65535, which the server gave us."""
        self._max_vectors = MAX_VECTORS if max_vectors is None else max_vectors
        self._plain: PlainPeer | None = None
        self._own: list[EventFd] = []
        self._eventfds: dict[int, list[EventFd]] = {}
        self._peers: dict[int, int] = {}
        self._subscriptions = Subscriptions()
        self._closed = False

    @property
    def vectors(self) -> int:
        """How many vectors we have: `wait()` takes 0 to one less."""
        return len(self._own)

    @property
    def peers(self) -> Mapping[int, int]:
        """The other peers: id -> number of vectors. A live view that cannot be written."""
        return MappingProxyType(self._peers)

    @property
    def memory(self) -> memoryview:
        """The shared memory, writable, until the end of the `connect()` block.

        `memory.cast("I")[n]`, and "H", "Q" likewise, is one load or store, never torn. A slice is
        copied in pieces: somebody who reads it meanwhile sees some old, some new. Views that are
        kept beyond the block stay valid. If somebody truncates the server's memory, access to what
        was cut off kills the process with SIGBUS; `ivshmem-server --memfd` rules that out.
        """
        if self._plain is None:
            raise trio.ClosedResourceError("the shared memory has not come")
        return self._plain.memory

    @property
    def connected(self) -> bool:
        """Whether the server is still there. Without it no peer joins, and leaves go unnoticed."""
        return not self._subscriptions.ended

    def ring(self, peer: int, vector: int = 0) -> None:
        """Interrupt `peer` (which may be ourselves) on `vector`. Never blocks.

        Rings coalesce until the peer takes them. Raises NoSuchPeerError, NoSuchVectorError.
        """
        eventfds = self._eventfds.get(peer)
        if eventfds is None or not 0 <= vector < len(eventfds):
            raise self._unknown(peer, vector)
        eventfds[vector].signal()

    async def wait(self, vector: int = 0) -> int:
        """Wait until somebody rings us on `vector`; return how many rings came since the last time.

        Who rang is not told. Cancelled, it loses no ring. Raises NoSuchVectorError,
        trio.BusyResourceError where another task waits on the vector, trio.ClosedResourceError
        when the `connect()` block ends meanwhile.
        """
        if not 0 <= vector < len(self._own):
            raise self._unknown(self.id, vector)
        return await self._own[vector].wait()

    def changes(self) -> AsyncIterator[Change]:
        """Return an iterator over the peers that join (PeerJoined) and leave (PeerLeft) from now on.

        Each call is a subscription of its own, which starts with the call. Look at `peers` after it
        for those who are there already. The iteration ends when the server has gone.
        """
        return self._subscriptions.subscribe()

    def take(self, event: Event) -> None:
        """Take what the server told; `connect()` calls this. Owns the event's descriptor.

        Raises RemoteProtocolError where the descriptor is not what it should be.
        """
        match event:
            case IdAssigned(id_):
                self.id = id_
                self._eventfds[id_] = self._own
            case MemoryReceived(fd):
                self._take_memory(fd)
            case VectorReceived(id_, vector, fd):
                self._take_vector(id_, vector, fd)
            case PeerDisconnected(id_):
                self._drop(id_)

    def server_gone(self) -> None:
        """Note that nothing will come from the server any more; `connect()` calls this."""
        self._subscriptions.end()

    def close(self) -> None:
        """Close every eventfd and unmap the memory; `connect()` calls this at the end of its block."""
        self._closed = True
        self._subscriptions.end()
        for eventfds in self._eventfds.values():
            for eventfd in eventfds:
                eventfd.close()
        self._eventfds.clear()
        self._own.clear()
        self._peers.clear()
        if self._plain is not None:
            self._plain.close()

    def _take_memory(self, fd: OwnedFd) -> None:
        try:
            self._plain = PlainPeer(fd)
        except UnusableMemoryError as error:
            raise RemoteProtocolError(f"the server's shared memory is unusable: {error}") from None

    def _take_vector(self, peer: int, vector: int, fd: OwnedFd) -> None:
        if vector >= self._max_vectors:
            fd.close()
            return
        if (kind := _kind(fd)) != _EVENTFD:
            fd.close()
            raise RemoteProtocolError(f"vector {vector} of peer {peer} is not an eventfd but {kind}")
        eventfds = self._eventfds.setdefault(peer, [])
        eventfds.append(EventFd(fd.detach()))
        if peer != self.id:
            self._count(peer, len(eventfds))

    def _count(self, peer: int, vectors: int) -> None:
        """Make the peer known once all its vectors have come.

        Those who were there before us come before our own vectors, whose number is not known. Those
        who join later come after them, and have as many.
        """
        if not self._own or peer in self._peers:
            self._peers[peer] = vectors
        elif vectors == len(self._own):
            self._peers[peer] = vectors
            self._subscriptions.put(PeerJoined(peer, vectors))

    def _drop(self, peer: int) -> None:
        for eventfd in self._eventfds.pop(peer, ()):
            eventfd.close()
        if self._peers.pop(peer, None) is not None:
            self._subscriptions.put(PeerLeft(peer))

    def _unknown(self, peer: int, vector: int) -> Exception:
        if self._closed:
            return trio.ClosedResourceError("the connection to the ivshmem server was closed")
        if peer in self._eventfds:
            who, count = "we have" if peer == self.id else f"peer {peer} has", len(self._eventfds[peer])
            return NoSuchVectorError(f"{who} no vector {vector}, only 0..{count - 1}")
        others = ", ".join(map(str, sorted(self._peers))) or "nobody"
        return NoSuchPeerError(f"peer {peer} is not connected; besides us, peer {self.id}, there is {others}")


_EVENTFD = "anon_inode:[eventfd]"


def _kind(fd: OwnedFd) -> str:
    """Return what Linux says that `fd` is. Anything but an eventfd might block our loop."""
    try:
        return os.readlink(f"/proc/self/fd/{fd.fileno()}")  # noqa: PTH115
    except OSError:
        return _EVENTFD  # no /proc here: take the server's word
