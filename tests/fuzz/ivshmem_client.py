"""Any bytes and descriptors to an ivshmem client.

An input is messages of 8 bytes, each after a byte that chooses the number of descriptors (bits 0 and 1)
and the size of the reads (bits 2 to 4, 0 for a single read).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.ivshmem import (
    MEMORY_MESSAGE,
    MESSAGE_SIZE,
    PROTOCOL_VERSION,
    ClientSession,
    MemoryReceived,
    Refusal,
    VectorReceived,
    encode,
)
from tests.fuzz.deliveries import new_fds
from tests.fuzz.harness import DefectError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.fds import OwnedFd

STEP = 1 + MESSAGE_SIZE


def one_input(data: bytes) -> None:
    """Fail unless every message becomes an event, or the session says what the server did wrong."""
    session = ClientSession()
    sent: list[OwnedFd] = []
    taken: list[OwnedFd] = []
    try:
        for place in range(0, len(data), STEP):
            fds = new_fds(data[place] & 3)
            sent += fds
            _feed(session, data[place + 1 : place + STEP], fds, data[place] >> 2 & 7, taken)
        session.receive(b"")
    except RemoteProtocolError as error:
        if len(str(error).splitlines()) != 1:
            raise DefectError(f"not in one line: {str(error)!r}") from error
    finally:
        session.close()
    if any(fd.closed for fd in taken):
        raise DefectError("the session closed a descriptor that an event had handed out")
    for fd in taken:
        fd.close()
    if not all(fd.closed for fd in sent):
        raise DefectError("the session keeps a descriptor that came, or lost it")


def _feed(session: ClientSession, data: bytes, fds: list[OwnedFd], step: int, taken: list[OwnedFd]) -> None:
    if not data:
        for fd in fds:
            fd.close()
    while data:
        size = min(step or len(data), session.bytes_wanted)
        for event in session.receive(data[:size], fds):
            if isinstance(event, (MemoryReceived, VectorReceived)):
                taken.append(event.fd)
        data, fds = data[size:], []


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield what servers say."""

    def said(*messages: tuple[int, int], step: int = 0) -> bytes:
        return b"".join(bytes([fds | step << 2]) + encode(value) for value, fds in messages)

    hello = [(PROTOCOL_VERSION, 0), (1, 0), (MEMORY_MESSAGE, 1)]
    peers = [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (0, 0), (2, 1), (0, 1), (65535, 1), (2, 0)]
    yield "set_up", said(*hello)
    yield "peers", said(*hello, *peers)
    yield "peers_in_pieces", said(*hello, *peers, step=3)
    yield "refused", said((next(iter(Refusal)), 0))
    yield "version_1", said((1, 0), (0, 0))
    yield "before_2_5", said((3, 0), (MEMORY_MESSAGE, 1))
    yield "two_descriptors", said(*hello, (2, 2))
