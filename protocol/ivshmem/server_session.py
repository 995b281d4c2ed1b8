"""The server's side of one ivshmem connection, without I/O: what to send next, in an order clients survive.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem Client-Server Protocol", version 0.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError
from protocol.fds import rights
from protocol.ivshmem.messages import MAX_ID, PROTOCOL_VERSION, Refusal, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from protocol.fds import OwnedFd


class Message:
    """One message ready for one sendmsg: `socket.sendmsg(m.buffers, m.ancillary)`.

    QEMU binds a descriptor to the message it came with only if every message is a sendmsg of its own.
    The same object serves every client, so that a join costs no encoding per client.
    """

    __slots__ = ("ancillary", "buffers", "origin")

    def __init__(self, value: int, fd: int | None = None, origin: Announcement | None = None) -> None:
        self.buffers = [encode(value)]
        self.ancillary = [] if fd is None else rights(fd)
        self.origin = origin

    @property
    def withdrawn(self) -> bool:
        """True for an announcement of a peer that has left: it is not sent any more."""
        return self.origin is not None and self.origin.withdrawn


class Announcement:
    """A client's id and eventfds, as every other client is told of them (messages 4, 5 and 6).

    Owns the eventfds; `withdraw()` closes them. `joined` is the time of the join on the server's clock.
    """

    __slots__ = ("eventfds", "id", "joined", "left", "messages", "withdrawn")

    def __init__(self, id_: int, joined: int, eventfds: Sequence[OwnedFd]) -> None:
        if not 0 <= id_ <= MAX_ID:
            raise LocalProtocolError(f"{id_} is no peer id: 0..{MAX_ID}")
        self.id = id_
        self.joined = joined
        self.eventfds = eventfds
        self.messages = tuple(Message(id_, fd.fileno(), self) for fd in eventfds)
        self.left = Message(id_)
        self.withdrawn = False

    def withdraw(self) -> None:
        """Close the eventfds: sessions that have not begun to send this announcement skip it."""
        self.withdrawn = True
        for fd in self.eventfds:
            fd.close()


_WITHDRAWN_KEPT = 64
"""How many withdrawn messages a queue may hold, beside as many as wait to be sent."""


class _State(Enum):
    NEW = auto()
    WELCOMED = auto()
    REFUSED = auto()


class ServerSession:
    """What one client is still to be sent: a queue of whole messages.

    The transport takes `next_message()`, sends it, and says `sent()`, with nothing in between; a
    message is whole or not begun. Nothing is ever dropped: a join that a client has not been told
    when the peer is gone again is withdrawn together with its leave.
    """

    def __init__(self) -> None:
        self.queued = 0
        """Messages waiting to be sent."""
        self._state = _State.NEW
        self._queue: deque[Message] = deque()
        self._setup_left = 0
        self._begun = -1
        self._own: Announcement | None = None

    @property
    def backlog(self) -> int:
        """Messages waiting that came up after the client's own set-up."""
        return self.queued - self._setup_left

    def welcome(self, own: Announcement, memory: Message, peers: Iterable[Announcement]) -> None:
        """Queue the whole set-up (messages 1 to 5): version, id, memory, each peer, the own eventfds.

        QEMU dies of own eventfds that come before the memory. `peers` come in the order they joined.
        """
        self._expect(_State.NEW)
        self._state, self._own = _State.WELCOMED, own
        self._queue += (Message(PROTOCOL_VERSION), Message(own.id), memory)
        for peer in peers:
            self._queue += peer.messages
        self._queue += own.messages
        self.queued = self._setup_left = len(self._queue)

    def refuse(self, reason: Refusal) -> None:
        """Queue a version that no client knows, the one refusal that does not make QEMU spin."""
        self._expect(_State.NEW)
        self._state = _State.REFUSED
        self._queue.append(Message(reason))
        self.queued = self._setup_left = 1

    def peer_joined(self, peer: Announcement) -> None:
        """Queue the connect notification of `peer` (message 6, with descriptors)."""
        self._expect(_State.WELCOMED)
        self._queue += peer.messages
        self.queued += len(peer.messages)

    def peer_left(self, peer: Announcement) -> None:
        """Queue the disconnect notification of `peer` (message 6, without a descriptor).

        Call it before `peer.withdraw()`. What of its join has not been sent is not sent any more.
        """
        self._expect(_State.WELCOMED)
        if peer is self._own:
            raise LocalProtocolError(f"client {peer.id} cannot be told of its own leave")
        unsent = self._unsent(peer)
        self.queued -= unsent
        if self._own and peer.joined < self._own.joined:
            self._setup_left -= unsent
        if unsent < len(peer.messages):
            self._queue.append(peer.left)
            self.queued += 1
        if len(self._queue) > 2 * self.queued + _WITHDRAWN_KEPT:
            # Peers that come and go would fill the queue of a client that does not read, uncounted.
            self._queue = deque(message for message in self._queue if not message.withdrawn)

    def next_message(self) -> Message | None:
        """Return the message to send now, or None. The same one again until `sent()` is called."""
        queue = self._queue
        while queue:
            message = queue[0]
            if not message.withdrawn:
                return message
            queue.popleft()
        return None

    def sent(self) -> None:
        """Note that the message from `next_message()` was taken whole by the kernel."""
        if not self._queue:
            raise LocalProtocolError("no message was due")
        message = self._queue.popleft()
        self.queued -= 1
        if self._setup_left:
            self._setup_left -= 1
        if message.origin is not None:
            self._begun = message.origin.joined

    def _unsent(self, peer: Announcement) -> int:
        """Count the messages of `peer`'s announcement still queued. Announcements are sent in join order."""
        if peer.joined > self._begun:
            return len(peer.messages)
        if peer.joined < self._begun:
            return 0
        unsent = 0
        for message in self._queue:
            if message.origin is not peer:
                break
            unsent += 1
        return unsent

    def _expect(self, state: _State) -> None:
        if self._state is not state:
            raise LocalProtocolError(f"the client is {self._state.name.lower()}, not {state.name.lower()}")
