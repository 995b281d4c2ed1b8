"""Clients of a registry: each a ClientSession that receives from its server session."""

from __future__ import annotations

import array
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from protocol.ivshmem import (
    MESSAGE_SIZE,
    ClientSession,
    Event,
    IdAssigned,
    MemoryReceived,
    PeerDisconnected,
    VectorReceived,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol.ivshmem import Message, ServerSession

_EVENTFD_ID = re.compile(r"^eventfd-id:\s*(\d+)$", re.MULTILINE)


def identity(fd: OwnedFd) -> int:
    """Return the number by which the kernel knows an eventfd, the same for every copy of it."""
    match = _EVENTFD_ID.search(Path(f"/proc/self/fdinfo/{fd.fileno()}").read_text())
    assert match, "this is not an eventfd"
    return int(match[1])


def new_eventfds(count: int) -> list[OwnedFd]:
    return [OwnedFd(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(count)]


class FakeClient:
    """What a client knows after the messages that it has taken so far.

    Asserts what would kill a QEMU: that no id comes back which it has seen leave.
    """

    def __init__(self, session: ServerSession) -> None:
        self.server = session
        self.id: int | None = None
        self.memory: int | None = None
        """Inode of the shared memory."""
        self.vectors: list[int] = []
        """Our own eventfds, by their identities."""
        self.peers: dict[int, list[int]] = {}
        """The eventfds of the others."""
        self.peers_before_vectors: dict[int, int] | None = None
        """How many vectors each peer had when our own first vector came."""
        self._seen_leaving: set[int] = set()
        self._session = ClientSession()

    def take(self, most: int, sizes: Iterator[int] | None = None) -> int:
        """Take up to `most` messages in reads of `sizes` bytes; return how many messages there were."""
        sizes = sizes or itertools.repeat(MESSAGE_SIZE)
        for count in range(most):
            message = self.server.next_message()
            if message is None:
                return count
            assert self.server.next_message() is message
            data, fds = b"".join(message.buffers), _copies(message)
            while data:
                size = min(next(sizes), self.bytes_wanted)
                self.receive(data[:size], fds)
                data, fds = data[size:], []
            self.server.sent()
        return most

    def take_all(self) -> int:
        """Take every message that waits; return how many there were."""
        count = 0
        while self.take(1):
            count += 1
        return count

    @property
    def bytes_wanted(self) -> int:
        return self._session.bytes_wanted

    def receive(self, data: bytes, fds: list[OwnedFd]) -> None:
        """Take what one read returned."""
        for event in self._session.receive(data, fds):
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case IdAssigned(id_):
                self.id = id_
            case MemoryReceived(fd):
                with fd:
                    self.memory = os.fstat(fd.fileno()).st_ino
            case VectorReceived(id_, _, fd):
                with fd:
                    self._add_vector(id_, identity(fd))
            case PeerDisconnected(id_):
                del self.peers[id_]
                self._seen_leaving.add(id_)

    def _add_vector(self, id_: int, eventfd: int) -> None:
        assert id_ not in self._seen_leaving, "QEMU would use freed memory"
        if id_ != self.id:
            self.peers.setdefault(id_, []).append(eventfd)
            return
        if self.peers_before_vectors is None:
            self.peers_before_vectors = {peer: len(eventfds) for peer, eventfds in self.peers.items()}
        self.vectors.append(eventfd)


def _copies(message: Message) -> list[OwnedFd]:
    """Return copies of the descriptors that a message carries, as the kernel gives them to a receiver."""
    return [OwnedFd(os.dup(fd)) for _, _, data in message.ancillary for fd in array.array("i", data)]


def values(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Return the value of each message and how many descriptors it carries."""
    return [
        (
            decode(b"".join(message.buffers)),
            sum(len(data) // array.array("i").itemsize for _, _, data in message.ancillary),
        )
        for message in messages
    ]


def take_messages(session: ServerSession) -> list[Message]:
    """Take every message that waits, as a transport does."""
    messages = []
    while (message := session.next_message()) is not None:
        messages.append(message)
        session.sent()
    return messages
