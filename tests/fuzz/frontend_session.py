"""Any bytes and descriptors to a front-end, as replies or requests, and to a back-end's channel.

The first byte chooses one of the three. A message's `option` chooses the request before it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError
from protocol.vhost_user import (
    BackendChannel,
    BackendSession,
    FrontendChannel,
    FrontendSession,
    Negotiation,
    Refused,
    Request,
)
from tests.fuzz.deliveries import converse, message, new_fds
from tests.fuzz.samples import ALL_FEATURES, ALL_PROTOCOL, BACKEND, FRONTEND, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol.vhost_user import Requester
    from tests.fuzz.deliveries import Delivery, Event

REPLIES, REQUESTS, CHANNEL = b"\0", b"\1", b"\2"
REPLY_FLAGS = 5


def one_input(data: bytes) -> None:
    """Fail unless every message becomes an event, or the session says what the other side did wrong."""
    if data[:1] == REQUESTS:
        _as_requests(data[1:])
    elif data[:1] == CHANNEL:
        session = BackendSession(ALL_FEATURES, ALL_PROTOCOL)
        _agree(session.negotiation)
        _as_replies(BackendChannel(session), BACKEND, data[1:])
    else:
        frontend = FrontendSession()
        _agree(frontend.negotiation)
        _as_replies(frontend, FRONTEND, data[1:])


def _agree(negotiation: Negotiation) -> None:
    negotiation.offered = negotiation.features = ALL_FEATURES
    negotiation.offered_protocol = negotiation.protocol_features = ALL_PROTOCOL


def _as_replies(session: Requester, requests: Sequence[Request], data: bytes) -> None:
    def prepare(delivery: Delivery) -> None:
        if delivery.option:
            ask(session, requests[(delivery.option - 1) % len(requests)])

    converse(session, data, prepare, lambda _: None)


def ask(session: Requester, sample: Request) -> None:
    """Make a request, unless a reply has taken away what it needs, and close what went with it."""
    request = type(sample).decode(sample.encode())
    request.fds = tuple(new_fds(max(request.allowed_fds())))
    with contextlib.suppress(LocalProtocolError):
        session.request(request, need_reply=True)
    request.close()


def _as_requests(data: bytes) -> None:
    frontend = FrontendSession()
    _agree(frontend.negotiation)
    session = FrontendChannel(frontend)

    def take(event: Event) -> None:
        if isinstance(event, (Request, Refused)):
            session.acknowledge(event, ok=False)

    converse(session, data, lambda _: None, take)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield the reply to each request, and each request of a back-end."""
    conversation = b""
    for place, request in enumerate(FRONTEND):
        reply = answer_to(request, request.reply)
        data = message(
            request.number, reply.encode(), REPLY_FLAGS, fds=max(reply.allowed_fds()), option=place + 1
        )
        yield f"reply_{request.label.lower()}", REPLIES + data
        conversation += data
    yield "conversation", REPLIES + conversation
    for place, request in enumerate(BACKEND):
        fds = max(request.allowed_fds())
        yield (
            f"request_{request.label.lower()}",
            REQUESTS + message(request.number, request.encode(), 9, fds=fds),
        )
        reply = answer_to(request, request.reply)
        data = message(request.number, reply.encode(), REPLY_FLAGS, option=place + 1)
        yield f"channel_{request.label.lower()}", CHANNEL + data
