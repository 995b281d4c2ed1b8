"""Any bytes and descriptors to a back-end's session, from the first message on or after the set-up.

The first byte chooses the negotiated features. A message's `option` chooses its answer, its `kind` the
size of the reads in which it comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import BackendSession, ProtocolFeature, Request
from tests.fuzz.deliveries import NEED_REPLY, VERSION, converse, message, new_fds
from tests.fuzz.harness import DefectError
from tests.fuzz.samples import ALL_FEATURES, ALL_PROTOCOL, FRONTEND, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fuzz.deliveries import Delivery, Event

FRESH, AGREED, XEN = b"\0", b"\1", b"\2"

REFUSE, ANSWER, LEAVE = 0, 1, 2


def one_input(data: bytes) -> None:
    """Fail unless every message becomes an event, or the session says what the other side did wrong."""
    session = BackendSession(ALL_FEATURES, ALL_PROTOCOL | ProtocolFeature.XEN_MMAP)
    if data[:1] != FRESH:
        xen = ProtocolFeature.XEN_MMAP if data[:1] == XEN else ProtocolFeature.NONE
        session.negotiation.features, session.negotiation.protocol_features = ALL_FEATURES, ALL_PROTOCOL | xen
    option, is_xen = 0, False

    def prepare(delivery: Delivery) -> None:
        nonlocal option, is_xen
        option, is_xen = delivery.option, session.negotiation.xen

    def take(event: Event) -> None:
        if isinstance(event, Request):
            check_encoding(event, is_xen)
        while option != LEAVE and session.owed:
            answer(session, good=option == ANSWER)

    converse(session, data[1:], prepare, take)


def check_encoding(request: Request, xen: bool) -> None:
    """Fail unless a message that was understood is the same once it is encoded and decoded."""
    again = type(request).decode(request.encode(xen), xen)
    again.need_reply = request.need_reply
    if again != request:
        raise DefectError(f"{request!r} is {again!r} once encoded and decoded")


def answer(session: BackendSession, *, good: bool) -> None:
    """Answer the request that waits first."""
    request = session.owed[0]
    if not good or not isinstance(request, Request):
        session.acknowledge(request, ok=False)
        return
    reply = answer_to(request, request.reply_type(session.negotiation))
    fds = new_fds(min(reply.allowed_fds()))
    session.reply(request, reply, [fd.fileno() for fd in fds])
    for fd in fds:
        fd.close()


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield every request alone, both ways that it may come, and the messages of a whole set-up."""
    everything = b""
    for request in FRONTEND:
        payload, fds = request.encode(), max(request.allowed_fds())
        plain = message(request.number, payload, fds=fds, option=ANSWER)
        asking = message(request.number, payload, VERSION | NEED_REPLY, fds=fds, option=ANSWER, kind=5)
        yield request.label.lower(), AGREED + plain + asking
        everything += plain
    yield "everything", FRESH + everything
    yield (
        "unanswered",
        AGREED + b"".join(message(request.number, request.encode(), option=LEAVE) for request in FRONTEND),
    )
