"""The server's side of one ivshmem connection: its messages, in a safe order; no I/O.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem Client-Server Protocol", version 0.

How it works: a session is a queue of whole messages. The set-up comes first: version, id, memory, the
other peers, the own eventfds, in that order, because QEMU crashes on eventfds before the memory. Joins
and leaves of others follow as they happen. A message is one sendmsg(), and is removed from the queue when
the kernel has taken all of it; a client that reads slowly delays no other.

A peer that joins and leaves while a client does not read must not fill that client's queue, nor keep its
eventfds open: `withdraw()` closes them at once, the queue skips messages of a withdrawn announcement, and
only a client that was sent a part of the announcement gets the leave. Announcements are sent in the order
of joins, so one number, the last join of which a message was sent, says which were begun.
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

    QEMU binds a descriptor to its message only if each message is a sendmsg of its own. All clients share
    the object, so a join is encoded once.
    """

    __slots__ = ("ancillary", "buffers", "origin")

    def __init__(self, value: int, fd: int | None = None, origin: Announcement | None = None) -> None:
        self.buffers = [encode(value)]
        self.ancillary = [] if fd is None else rights(fd)
        self.origin = origin

    @property
    def withdrawn(self) -> bool:
        """True for an announcement of a peer that has left: it is not sent any longer."""
        return self.origin is not None and self.origin.withdrawn


class Announcement:
    """A client's id and eventfds, as they are sent to all clients (messages 4, 5 and 6).

    It owns the eventfds; `withdraw()` closes them. `joined` is the time of the join on the registry's clock.
    """

    __slots__ = ("eventfds", "id", "joined", "left", "messages", "withdrawn")

    def __init__(self, id_: int, joined: int, eventfds: Sequence[OwnedFd]) -> None:
        if not 0 <= id_ <= MAX_ID:
            raise LocalProtocolError(f"{id_} is not a peer id: 0..{MAX_ID}")
        self.id = id_
        self.joined = joined
        self.eventfds = eventfds
        self.messages = tuple(Message(id_, fd.fileno(), self) for fd in eventfds)
        self.left = Message(id_)
        self.withdrawn = False

    def withdraw(self) -> None:
        """Close the eventfds; sessions that have not begun to send this announcement skip it."""
        self.withdrawn = True
        for fd in self.eventfds:
            fd.close()


_WITHDRAWN_KEPT = 64
"""How many withdrawn messages a queue may hold beyond the number of messages to send."""


class _State(Enum):
    NEW = auto()
    WELCOMED = auto()
    REFUSED = auto()


class ServerSession:
    """The queue of messages for one client.

    The transport takes `next_message()`, sends it, and calls `sent()`, with nothing in between; a message
    is sent whole or not at all. None is dropped, but if a peer leaves before a client was sent its join,
    join and leave are withdrawn together.
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
        """Messages waiting that are not part of the client's own set-up."""
        return self.queued - self._setup_left

    def welcome(self, own: Announcement, memory: Message, peers: Iterable[Announcement]) -> None:
        """Queue the whole set-up (messages 1 to 5): version, id, memory, each peer, the own eventfds.

        QEMU crashes on eventfds of its own before the memory. `peers` are in the order in which they joined.
        """
        self._expect(_State.NEW)
        self._state, self._own = _State.WELCOMED, own
        self._queue += (Message(PROTOCOL_VERSION), Message(own.id), memory)
        for peer in peers:
            self._queue += peer.messages
        self._queue += own.messages
        self.queued = self._setup_left = len(self._queue)

    def refuse(self, reason: Refusal) -> None:
        """Queue a version that no client knows: QEMU spins on any other refusal."""
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

        Call it before `peer.withdraw()`. Messages of its join that were not sent are skipped.
        """
        self._expect(_State.WELCOMED)
        if peer is self._own:
            raise LocalProtocolError(f"client {peer.id} cannot be sent its own leave")
        unsent = self._unsent(peer)
        self.queued -= unsent
        if self._own and peer.joined < self._own.joined:
            self._setup_left -= unsent
        if unsent < len(peer.messages):
            self._queue.append(peer.left)
            self.queued += 1
        if len(self._queue) > 2 * self.queued + _WITHDRAWN_KEPT:
            # Uncounted, peers that come and go would fill the queue of a client that does not read.
            self._queue = deque(message for message in self._queue if not message.withdrawn)

    def next_message(self) -> Message | None:
        """Return the message to send, or None; the same one until `sent()` is called."""
        queue = self._queue
        while queue:
            message = queue[0]
            if not message.withdrawn:
                return message
            queue.popleft()
        return None

    def sent(self) -> None:
        """Record that the kernel has taken the whole message from `next_message()`."""
        if not self._queue:
            raise LocalProtocolError("no message was due")
        message = self._queue.popleft()
        self.queued -= 1
        if self._setup_left:
            self._setup_left -= 1
        if message.origin is not None:
            self._begun = message.origin.joined

    def _unsent(self, peer: Announcement) -> int:
        """Count the messages of `peer`'s announcement that are still queued."""
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
