"""The answering end of either socket: receives requests, checks and answers them; no I/O.

How it works: each request passes the same steps. Its frame is decoded; descriptors that the specification
tolerates are dropped; requirement and number of descriptors are checked; its effect on the negotiation is
recorded. A request that fails one of them becomes a `Refused`, with its descriptors closed, and the
connection goes on. If the sender waits for a reply, the request or refusal is put on a queue, with the
class of the reply as the negotiation is at that moment.

Replies leave in the order of the queue: to answer any but the first is an error of ours, as the other
side could not tell whose reply it is. So a handler may take its time, and the next request may be read,
but not be answered before it. A request that is returned owns its descriptors; those of a reply stay
their owner's until the packet was sent. Lost framing breaks the session for good, with nothing left open.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.framing import REPLY_FLAGS, Framer, Packet, pack
from protocol.vhost_user.message import Ack, Reply, Request, payload_fields
from protocol.vhost_user.negotiation import UnusableError
from protocol.vhost_user.validation import check_request, decode_request, drop_discarded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.fds import OwnedFd
    from protocol.vhost_user.framing import Frame
    from protocol.vhost_user.negotiation import Negotiation


@dataclass
class Refused:
    """A request that failed a check; the connection goes on.

    Its descriptors are closed. `acknowledge(refused, ok=False)` answers it if a reply is owed.
    """

    number: int
    label: str
    reason: str
    reply_owed: bool = False

    def __str__(self) -> str:
        return f"{self.label} is refused: {self.reason}"


class Responder:
    """Decodes requests, lets through those that pass every check, and encodes their replies in order.

    Read at most `bytes_wanted` bytes at a time.
    """

    def __init__(self, table: Mapping[int, type[Request]], negotiation: Negotiation) -> None:
        self._table = table
        self._negotiation = negotiation
        self._framer = Framer()
        self._owed: deque[tuple[Request | Refused, type[Reply]]] = deque()
        self._broken = False

    @property
    def bytes_wanted(self) -> int:
        """Bytes missing to the end of the header or payload under way, at least 1."""
        return self._framer.bytes_wanted

    @property
    def owed(self) -> tuple[Request | Refused, ...]:
        """The requests that wait for a reply, in the order in which they get it."""
        return tuple(request for request, _ in self._owed)

    def receive(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> list[Request | Refused]:
        """Take the result of one read; return the request that it completed, if any.

        The session owns `fds` from here on; the request that is returned owns those that belong to it.
        Empty `data` is the end of the connection. Raises RemoteProtocolError, and nothing else whatever
        comes, if framing is lost or the connection must end; the session is then broken and raises at
        each further call.
        """
        if self._broken:
            _close(fds)
            raise RemoteProtocolError("the connection was given up after an earlier error")
        try:
            frame = self._framer.feed(data, fds)
            return [] if frame is None else [self._admit(frame)]
        except RemoteProtocolError:
            self.close()
            raise

    def acknowledge(self, request: Request | Refused, ok: bool = True) -> Packet | None:
        """Return the packet that says whether `request` was done; None if no reply is owed.

        Raises LocalProtocolError if an earlier request is not answered yet, and for the success of a
        request whose reply has values.
        """
        if not request.reply_owed:
            return None
        return self._answer(request, self._due(request).outcome(ok), ())

    def reply(self, request: Request, value: Reply | int, fds: Sequence[int] = ()) -> Packet:
        """Return the packet that answers `request` with `value`: a reply, or its only number.

        `fds` (and those that the reply owns) stay their owner's. Raises LocalProtocolError if no reply
        is owed, if an earlier request is not answered yet, and for a reply that is not the request's.
        """
        if not request.reply_owed:
            raise LocalProtocolError(f"{request.label} waits for no reply")
        kind = self._due(request)
        reply = value if isinstance(value, Reply) else _from_number(kind, value)
        if not isinstance(reply, kind) or not request.is_answered_by(reply):
            raise LocalProtocolError(f"{request!r} is not answered by {reply!r}")
        return self._answer(request, reply, fds)

    def close(self) -> None:
        """Close the descriptors that no request owns. The session is broken afterwards."""
        self._broken = True
        self._framer.close()

    def _admit(self, frame: Frame) -> Request | Refused:
        request = None
        try:
            request = decode_request(frame, self._table, self._negotiation.xen)
            drop_discarded(request)
            check_request(request, self._negotiation)
            request.negotiate(self._negotiation)
        except ValueError as error:
            (request or frame).close()
            if isinstance(error, UnusableError):
                raise RemoteProtocolError(str(error)) from None
            return self._refuse(frame, str(error))
        if request.is_replied(self._negotiation):
            request.reply_owed = True
            self._owed.append((request, request.reply_type(self._negotiation)))
        return request

    def _refuse(self, frame: Frame, reason: str) -> Refused:
        kind = self._table.get(frame.number)
        refused = Refused(frame.number, kind.number.name if kind else f"request {frame.number}", reason)
        asked = frame.need_reply and ProtocolFeature.REPLY_ACK in self._negotiation.protocol_features
        waited_for = kind is not None and kind.is_always_replied()
        if (asked or waited_for) and not frame.is_reply:
            refused.reply_owed = True
            self._owed.append((refused, kind.reply if kind else Ack))
        return refused

    def _due(self, request: Request | Refused) -> type[Reply]:
        """Return the class of the reply to `request`, whose turn it is."""
        first, kind = self._owed[0]
        if first is not request:
            raise LocalProtocolError(f"{first.label} is to be answered before {request.label}")
        return kind

    def _answer(self, request: Request | Refused, reply: Reply, fds: Sequence[int]) -> Packet:
        if reply.fds:
            fds = (*(fd.fileno() for fd in reply.fds), *fds)
        if len(fds) not in reply.allowed_fds():
            raise LocalProtocolError(f"{len(fds)} file descriptors do not belong to {reply!r}")
        packet = Packet(pack(request.number, REPLY_FLAGS, reply.encode(self._negotiation.xen)), tuple(fds))
        self._owed.popleft()
        request.reply_owed = False
        return packet


def _from_number(kind: type[Reply], value: int) -> Reply:
    names = [each.name for each in payload_fields(kind)]
    if len(names) != 1:
        raise LocalProtocolError(f"a {kind.__name__} is not a single number")
    values: dict[str, Any] = {names[0]: value}
    return kind(**values)


def _close(fds: Sequence[OwnedFd]) -> None:
    for fd in fds:
        fd.close()
