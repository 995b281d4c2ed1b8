"""Inputs that are vhost-user messages: how bytes say which come, and with how many descriptors.

An input is messages as they are on the wire, one after the other. Bits 16 to 31 of a header's flags,
which mean nothing in vhost-user, say how the message is delivered, and are cleared before it is.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from protocol.errors import RemoteProtocolError
from protocol.fds import OwnedFd
from protocol.vhost_user import Message, Refused, describe
from tests.fuzz.harness import DefectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from protocol.vhost_user import Reply, Request, Requester, Responder

    Session = Responder | Requester
    Event = Request | Refused | Reply

_HEADER = struct.Struct("=III")
_MAX_PAYLOAD = 0x2000
VERSION = 1
NEED_REPLY = 8


class Delivery(NamedTuple):
    """A message, and how it comes."""

    data: bytes
    fds: int
    """How many descriptors come with it (bits 24 to 27 of the flags)."""
    option: int
    """For the target (bits 16 to 23)."""
    kind: int
    """For the target (bits 28 to 31)."""

    @property
    def number(self) -> int:
        """The message's number; 0 where its header is not whole."""
        return int.from_bytes(self.data[:4], "little")


def message(
    number: int,
    payload: bytes = b"",
    flags: int = VERSION,
    *,
    fds: int = 0,
    option: int = 0,
    kind: int = 0,
) -> bytes:
    """Return a message for an input."""
    return _HEADER.pack(number, flags | option << 16 | fds << 24 | kind << 28, len(payload)) + payload


def deliveries(data: bytes) -> Iterator[Delivery]:
    """Yield the messages of an input; the last one may be incomplete."""
    while data:
        if len(data) < _HEADER.size:
            yield Delivery(data, 0, 0, 0)
            return
        number, flags, size = _HEADER.unpack_from(data)
        end = _HEADER.size + min(size, _MAX_PAYLOAD)
        header = _HEADER.pack(number, flags & 0xFFFF, size)
        yield Delivery(header + data[_HEADER.size : end], flags >> 24 & 0xF, flags >> 16 & 0xFF, flags >> 28)
        data = data[end:]


def new_fds(count: int) -> list[OwnedFd]:
    """Return descriptors of nothing in particular."""
    return [OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) for _ in range(count)]


def feed(
    session: Session,
    data: bytes,
    fds: Sequence[OwnedFd],
    step: int,
    take: Callable[[Event], None],
) -> None:
    """Give a message to a session in reads of at most `step` bytes (0: as many as it wants)."""
    while data:
        size = min(step or len(data), session.bytes_wanted)
        for event in session.receive(data[:size], fds):
            take(event)
        data, fds = data[size:], ()


def converse(
    session: Session, data: bytes, prepare: Callable[[Delivery], None], take: Callable[[Event], None]
) -> None:
    """Give a session all of an input, and check what it makes of it.

    `prepare` is called before each message, `take` for each event, whose descriptors are closed
    afterwards. Raises DefectError where one of them stays open, or a text is of several lines.
    """
    all_fds: list[OwnedFd] = []

    def check(event: Event) -> None:
        text = describe(event) if isinstance(event, Message) else str(event)
        if len(text.splitlines()) != 1:
            raise DefectError(f"not in one line: {text!r}")
        try:
            take(event)
        finally:
            if isinstance(event, Message):
                event.close()

    try:
        for delivery in deliveries(data):
            prepare(delivery)
            fds = new_fds(delivery.fds)
            all_fds += fds
            feed(session, delivery.data, fds, delivery.kind, check)
        session.receive(b"")
    except RemoteProtocolError as error:
        if len(str(error).splitlines()) != 1:
            raise DefectError(f"not in one line: {str(error)!r}") from error
    finally:
        session.close()
    if not all(fd.closed for fd in all_fds):
        raise DefectError("the session keeps a descriptor that came, or lost it")
