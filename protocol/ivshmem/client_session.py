"""The client's side of an ivshmem connection, without I/O: bytes and fds in, events out.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem Client-Server Protocol", version 0.

How it works: the set-up is a sequence of states, version, id, memory; then the client is connected, and
each message is the vector of a peer (with a descriptor) or its leave (without). A peer's vectors have no
number on the wire: they come in order, so the session counts them for each peer, and for itself by its
own id. A leave ends the count; the same id may join again later.

A descriptor is the session's until its message is complete, and the event's from then on. The first
message that no server may send breaks the session: it closes what it holds, and raises at each further
call. Events that were returned before stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.ivshmem.messages import (
    MAX_ID,
    MAX_VECTORS,
    MEMORY_MESSAGE,
    MESSAGE_SIZE,
    PROTOCOL_VERSION,
    Refusal,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd


@dataclass(frozen=True)
class IdAssigned:
    """The server has assigned our id (message 2 of the specification)."""

    id: int


@dataclass(frozen=True)
class MemoryReceived:
    """The shared memory has come (message 3). The event owns `fd`, until its receiver takes it."""

    fd: OwnedFd


@dataclass(frozen=True)
class VectorReceived:
    """An eventfd has come: it interrupts the peer `id`, or is our own interrupt if `id` is ours.

    `vector` counts from 0 for each peer. The event owns `fd`, until its receiver takes it.
    """

    id: int
    vector: int
    fd: OwnedFd


@dataclass(frozen=True)
class PeerDisconnected:
    """The peer `id` has left (message 6)."""

    id: int


Event = IdAssigned | MemoryReceived | VectorReceived | PeerDisconnected
"""What a server's message tells a client."""


class _State(Enum):
    VERSION = auto()
    ID = auto()
    MEMORY = auto()
    CONNECTED = auto()
    BROKEN = auto()


class ClientSession:
    """Decodes a server's messages into events, and refuses messages that no server may send.

    Read at most `bytes_wanted` bytes at a time: the kernel attaches a descriptor to the first byte of its
    message, so a read must not cross the end of a message.
    """

    def __init__(self) -> None:
        self.id: int | None = None
        """Our id; None until the server has assigned it."""
        self._state = _State.VERSION
        self._buffer = b""
        self._fds: list[OwnedFd] = []
        self._version = PROTOCOL_VERSION
        self._vectors: dict[int, int] = {}

    @property
    def bytes_wanted(self) -> int:
        """Bytes missing to the end of the message under way: 1 to 8."""
        return MESSAGE_SIZE - len(self._buffer)

    @property
    def vectors(self) -> int:
        """How many of our own vectors have come."""
        return 0 if self.id is None else self._vectors.get(self.id, 0)

    @property
    def expected(self) -> str:
        """What the server has to send next, for an error about a set-up that hangs."""
        if self._version != PROTOCOL_VERSION:
            return f"our id ({_wrong_version(self._version)})"
        return _EXPECTED.get(self._state, "our vectors")

    def receive(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> list[Event]:
        """Take the result of one read; return the events that it completed (none or one).

        The session owns `fds` from here on, and closes them before it raises. Empty `data` is the end of
        the connection. Raises RemoteProtocolError, and nothing else whatever comes, for a message that no
        server may send, and for an end inside a message or before the set-up was complete; the session is
        then broken and raises at each further call.
        """
        self._fds += fds
        try:
            if self._state is _State.BROKEN:
                raise RemoteProtocolError("the connection was given up after an earlier error")
            if len(data) > self.bytes_wanted:
                raise RemoteProtocolError(f"{len(data)} bytes came where {self.bytes_wanted} were wanted")
            if not data:
                return self._end()
            self._buffer += data
            if len(self._buffer) < MESSAGE_SIZE:
                return []
            return [event] if (event := self._message()) else []
        except RemoteProtocolError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors that no event owns. The session is broken afterwards."""
        self._state = _State.BROKEN
        for fd in self._fds:
            fd.close()
        self._fds.clear()

    def _end(self) -> list[Event]:
        if self._buffer:
            raise RemoteProtocolError(f"the server closed inside a message ({len(self._buffer)} of 8 bytes)")
        if self._state is _State.CONNECTED:
            return []
        raise RemoteProtocolError(f"the server closed during set-up, where {self.expected} was due")

    def _message(self) -> Event | None:
        value, self._buffer = decode(self._buffer), b""
        if len(self._fds) > 1:
            raise RemoteProtocolError(f"message {value} came with {len(self._fds)} file descriptors")
        fd = self._fds[0] if self._fds else None
        event = _HANDLERS[self._state](self, value, fd)
        self._fds.clear()  # the event owns it now
        return event

    def _take_version(self, value: int, fd: OwnedFd | None) -> None:
        if fd is not None:
            raise RemoteProtocolError(f"the protocol version ({value}) came with a file descriptor")
        if value in Refusal.__members__.values():
            raise RemoteProtocolError(f"the server refused: {Refusal(value).text}")
        if not PROTOCOL_VERSION <= value <= MAX_ID:
            raise RemoteProtocolError(_wrong_version(value))
        # A server before QEMU 2.5 sends our id here and the memory next: nothing else distinguishes it.
        self._version = value
        self._state = _State.ID

    def _take_id(self, value: int, fd: OwnedFd | None) -> IdAssigned:
        if value == MEMORY_MESSAGE and fd is not None:
            raise RemoteProtocolError(
                "the server speaks the protocol from before QEMU 2.5, without a version; update the server"
            )
        if self._version != PROTOCOL_VERSION:
            raise RemoteProtocolError(_wrong_version(self._version))
        if fd is not None or not 0 <= value <= MAX_ID:
            raise RemoteProtocolError(f"our id was due, 0..{MAX_ID}; got {_describe(value, fd)}")
        self.id = value
        self._state = _State.MEMORY
        return IdAssigned(value)

    def _take_memory(self, value: int, fd: OwnedFd | None) -> MemoryReceived:
        if value != MEMORY_MESSAGE or fd is None:
            raise RemoteProtocolError(f"the shared memory was due (-1 with a fd); got {_describe(value, fd)}")
        self._state = _State.CONNECTED
        return MemoryReceived(fd)

    def _take_notification(self, value: int, fd: OwnedFd | None) -> Event:
        if not 0 <= value <= MAX_ID:
            raise RemoteProtocolError(f"a peer id was due, 0..{MAX_ID}; got {_describe(value, fd)}")
        if fd is None:
            return self._disconnected(value)
        vector = self._vectors.get(value, 0)
        if vector == MAX_VECTORS:
            raise RemoteProtocolError(f"peer {value} has more than {MAX_VECTORS} vectors")
        self._vectors[value] = vector + 1
        return VectorReceived(value, vector, fd)

    def _disconnected(self, peer: int) -> PeerDisconnected:
        if peer == self.id:
            raise RemoteProtocolError(f"the server says that we, peer {peer}, have left")
        if self._vectors.pop(peer, None) is None:
            raise RemoteProtocolError(f"peer {peer} left, but was not connected")
        return PeerDisconnected(peer)


_EXPECTED = {
    _State.VERSION: "its protocol version",
    _State.ID: "our id",
    _State.MEMORY: "the shared memory",
}

_HANDLERS = {
    _State.VERSION: ClientSession._take_version,
    _State.ID: ClientSession._take_id,
    _State.MEMORY: ClientSession._take_memory,
    _State.CONNECTED: ClientSession._take_notification,
}


def _wrong_version(value: int) -> str:
    if value > MAX_ID and value & 0xFF == ord("{"):
        return "what came is JSON: this is a server's --status-socket, give its -S"
    return f"the server speaks protocol version {value}; this client knows version {PROTOCOL_VERSION} only"


def _describe(value: int, fd: OwnedFd | None) -> str:
    return f"{value} {'without' if fd is None else 'with'} a file descriptor"
