"""Shared by tests of the vhost-user protocol: negotiated sessions and their bytes."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Protocol, TypeVar

from hypothesis import settings

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    BackendChannel,
    BackendSession,
    FrontendChannel,
    FrontendSession,
    Negotiation,
    Packet,
    ProtocolFeature,
    Refused,
    Reply,
    Request,
    pack,
)
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from protocol.vhost_user import Message, Responder

ALL_FEATURES = reduce(or_, Feature)
ALL_PROTOCOL = reduce(or_, ProtocolFeature).without(ProtocolFeature.XEN_MMAP)

VERSION = 0x1
REPLY = 0x4
NEED_REPLY = 0x8

_Event = TypeVar("_Event")
_Event_co = TypeVar("_Event_co", covariant=True)


class _Session(Protocol[_Event_co]):
    @property
    def bytes_wanted(self) -> int: ...

    def receive(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> Sequence[_Event_co]: ...


def new_fd() -> OwnedFd:
    return OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def new_fds(count: int) -> tuple[OwnedFd, ...]:
    return tuple(new_fd() for _ in range(count))


@contextmanager
def closing(*messages: Message) -> Iterator[None]:
    """Close what the messages own, whatever happens."""
    try:
        yield
    finally:
        for message in messages:
            message.close()


def agreed(
    features: Feature = ALL_FEATURES, protocol: ProtocolFeature = ALL_PROTOCOL, *, offered: bool = True
) -> Negotiation:
    """Return the state of two sides that have turned on all that is offered."""
    if not offered:
        return Negotiation(features=features, protocol_features=protocol)
    return Negotiation(features, protocol, features, protocol)


def backend(negotiation: Negotiation | None = None) -> BackendSession:
    """Return a back-end's session that has negotiated everything, or `negotiation`."""
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
    vars(session.negotiation).update(vars(negotiation or agreed()))
    return session


def frontend(negotiation: Negotiation | None = None) -> FrontendSession:
    """Return a front-end's session that has negotiated everything, or `negotiation`."""
    session = FrontendSession()
    vars(session.negotiation).update(vars(negotiation or agreed()))
    return session


def channel(negotiation: Negotiation | None = None) -> tuple[BackendChannel, FrontendChannel]:
    """Return both ends of the socket for the back-end's requests."""
    return BackendChannel(backend(negotiation)), FrontendChannel(frontend(negotiation))


def feed(
    session: _Session[_Event],
    data: bytes,
    fds: Sequence[OwnedFd] = (),
    chunk: Callable[[int], int] = lambda wanted: wanted,
) -> list[_Event]:
    """Give `data` to the session in reads of `chunk(bytes wanted)`, the descriptors with the first."""
    events: list[_Event] = []
    while data:
        size = chunk(session.bytes_wanted)
        events += session.receive(data[:size], fds)
        data, fds = data[size:], ()
    return events


def deliver(session: _Session[_Event], packet: Packet | None) -> _Event:
    """Give the session one message, as a kernel would: with duplicates of its descriptors."""
    assert packet is not None, "nothing was sent"
    [event] = feed(session, packet.data, [OwnedFd(os.dup(fd)) for fd in packet.fds])
    return event


def ask(
    session: Responder, request: type[Request] | int, payload: bytes = b"", flags: int = VERSION
) -> Request:
    """Give the session a request of these bytes, which it takes."""
    event = send(session, request, payload, flags)
    assert isinstance(event, Request), event
    return event


def send(
    session: Responder,
    request: type[Request] | int,
    payload: bytes = b"",
    flags: int = VERSION,
    fds: Sequence[OwnedFd] = (),
) -> Request | Refused:
    """Give the session a request of these bytes; return what it makes of it."""
    number = request if isinstance(request, int) else request.number
    [event] = feed(session, pack(number, flags, payload), fds)
    return event


def refused(event: Request | Refused) -> Refused:
    assert isinstance(event, Refused), event
    return event


def answered(event: Reply, request: Request) -> Reply:
    assert event.answers is request
    return event


def by_name(kind: type[Request]) -> str:
    """Return what a test's id calls a request."""
    return kind.number.name


fewer_examples = settings(max_examples=max(10, settings().max_examples // 5))
"""For a property that is tried for each of fifty messages."""
