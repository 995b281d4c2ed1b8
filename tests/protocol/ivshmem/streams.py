"""Streams of servers, well-formed and not, and the results of their sessions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from protocol.fds import Closing, OwnedFd
from protocol.ivshmem import (
    MEMORY_MESSAGE,
    MESSAGE_SIZE,
    PROTOCOL_VERSION,
    ClientSession,
    Event,
    MemoryReceived,
    Refusal,
    VectorReceived,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass
class Sent:
    """A message of a server: its value, and whether a descriptor goes with it."""

    value: int
    has_fd: bool = False


class Descriptors(Closing):
    """Makes descriptors and keeps account of them; closes what is left at the end of a block."""

    def __init__(self) -> None:
        self.made: list[OwnedFd] = []

    def new(self) -> OwnedFd:
        fd = OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        self.made.append(fd)
        return fd

    def open(self) -> list[OwnedFd]:
        """Return those that are still open, in the order they were made."""
        return [fd for fd in self.made if not fd.closed]

    def close(self) -> None:
        for fd in self.made:
            fd.close()


def owned(events: Iterable[Event]) -> list[OwnedFd]:
    """Return the descriptors that the events handed out, in order."""
    return [event.fd for event in events if isinstance(event, (MemoryReceived, VectorReceived))]


@dataclass
class Client:
    """A session with all the events that it has returned."""

    session: ClientSession = field(default_factory=ClientSession)
    events: list[Event] = field(default_factory=list)

    def take(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> list[Event]:
        events = self.session.receive(data, fds)
        self.events += events
        return events

    def take_message(self, value: int, *fds: OwnedFd) -> list[Event]:
        return self.take(encode(value), fds)

    def take_in_pieces(self, value: int, fds: Sequence[OwnedFd], sizes: Iterator[int]) -> None:
        """Take a message in reads of `sizes` bytes, or what the session wants if that is less.

        The kernel hands out the descriptors with the first byte of their message.
        """
        data = encode(value)
        while data:
            count = min(next(sizes), self.session.bytes_wanted)
            self.take(data[:count], fds)
            data, fds = data[count:], ()


ids = st.integers(0, 5) | st.integers(0, 0xFFFF)


@st.composite
def server_streams(draw: st.DrawFn) -> list[Sent]:
    """Everything that a server may say to a client, in an order that the protocol allows."""
    own = draw(ids)
    stream = [Sent(PROTOCOL_VERSION), Sent(own), Sent(MEMORY_MESSAGE, has_fd=True)]
    present: set[int] = set()
    for peer in draw(st.lists(ids, max_size=20)):
        has_fd = peer == own or peer not in present or draw(st.booleans())
        stream.append(Sent(peer, has_fd))
        if has_fd and peer != own:
            present.add(peer)
        else:
            present.discard(peer)
    return stream


_values = st.sampled_from([-1, 0, 1, 2, *Refusal, 65535, 65536]) | st.integers(-(2**63), 2**63 - 1)

_reads = st.binary(max_size=MESSAGE_SIZE + 1) | _values.map(encode)

garbage = st.lists(st.tuples(_reads, st.integers(0, 3)), max_size=30)
"""Reads as they should never be: any bytes, too many or none at all, and 0 to 3 descriptors with each."""


@st.composite
def spoilt_streams(draw: st.DrawFn) -> list[tuple[bytes, int]]:
    """A server's messages, with a few replaced, dropped, repeated or cut: deep in the protocol, and wrong."""
    reads = [(encode(message.value), int(message.has_fd)) for message in draw(server_streams())]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(reads)))
        reads[at : at + draw(st.integers(0, 2))] = draw(garbage.filter(lambda reads: len(reads) < 4))
    return reads
