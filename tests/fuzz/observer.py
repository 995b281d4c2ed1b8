"""Any bytes and descriptors between two others, to the observer of a trace.

A message's `kind` chooses its sender and its socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.vhost_user import BACKEND_REQUESTS, FRONTEND_REQUESTS, Framer, ObservedNegotiation, Observer
from tests.fuzz.deliveries import deliveries, message, new_fds
from tests.fuzz.harness import DefectError
from tests.fuzz.samples import BACKEND, FRONTEND, answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.fds import OwnedFd
    from protocol.vhost_user import Frame

REPLY, CHANNEL = 1, 2
"""Bits of `kind`."""


def one_input(data: bytes) -> None:
    """Fail unless every message is told of in one line, and keeps its bytes and descriptors."""
    negotiation = ObservedNegotiation()
    observers = (Observer(FRONTEND_REQUESTS, negotiation), Observer(BACKEND_REQUESTS, negotiation))
    for delivery in deliveries(data):
        observer = observers[bool(delivery.kind & CHANNEL)]
        fds = new_fds(delivery.fds)
        frame = _frame(delivery.data, fds)
        if frame is None:
            return
        observed = (observer.reply if delivery.kind & REPLY else observer.request)(frame)
        if len(str(observed).splitlines()) != 1:
            raise DefectError(f"not in one line: {str(observed)!r}")
        if frame.data != delivery.data or frame.fds != fds:
            raise DefectError(f"{delivery} became {frame}")
        frame.close()


def _frame(data: bytes, fds: list[OwnedFd]) -> Frame | None:
    framer = Framer()
    frame = None
    try:
        while data:
            size = framer.bytes_wanted
            frame = framer.feed(data[:size], fds)
            data, fds = data[size:], []
    except RemoteProtocolError:
        return None
    if frame is None:
        framer.close()
    return frame


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield each request with its reply, and all of them as one conversation."""
    everything = b""
    for requests, bit in ((FRONTEND, 0), (BACKEND, CHANNEL)):
        for request in requests:
            reply = answer_to(request, request.reply)
            data = message(
                request.number, request.encode(), 9, fds=max(request.allowed_fds()), kind=bit
            ) + message(request.number, reply.encode(), 5, fds=max(reply.allowed_fds()), kind=bit | REPLY)
            yield f"{'channel_' if bit else ''}{request.label.lower()}", data
            everything += data
    yield "everything", everything
