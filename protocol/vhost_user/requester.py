"""The requesting end of either socket: sends requests and matches their replies; no I/O.

How it works: a request that will be replied is put on a queue, with the class of its reply as the
negotiation is at that moment; a feature that is turned on later does not change it. The other side
answers in order, so each reply is that of the first request on the queue; its number must agree. A
request's effect on the negotiation is recorded when it is sent, that of a reply (an offer) when it comes.

The descriptors of a request stay the request's: its owner closes them when the packet was sent. Those of
a reply are the framer's until the reply is returned, which owns them then. The first fault of the other
side breaks the session for good, with nothing left open; requests on the queue get no reply.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.framing import NEED_REPLY, REPLY_FLAGS, VERSION, Framer, Packet, pack
from protocol.vhost_user.message import Empty, Reply
from protocol.vhost_user.validation import RefusedError, check_fds, check_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd
    from protocol.vhost_user.framing import Frame
    from protocol.vhost_user.message import Request
    from protocol.vhost_user.negotiation import Negotiation


class Requester:
    """Encodes requests, and matches replies with the requests that wait for them.

    Read at most `bytes_wanted` bytes at a time. Several requests may be under way; they are answered in
    the order in which they were sent.
    """

    def __init__(self, negotiation: Negotiation) -> None:
        self._negotiation = negotiation
        self._framer = Framer()
        self._waiting: deque[tuple[Request, type[Reply]]] = deque()
        self._broken = False

    @property
    def bytes_wanted(self) -> int:
        """Bytes missing to the end of the header or payload under way, at least 1."""
        return self._framer.bytes_wanted

    @property
    def waiting(self) -> tuple[Request, ...]:
        """The requests that wait for their reply, in the order in which it comes."""
        return tuple(request for request, _ in self._waiting)

    def request(self, message: Request, need_reply: bool = False) -> Packet:
        """Return the packet to send; the descriptors stay the message's, to be closed after sending.

        `need_reply` asks for an acknowledgement; a request with a reply of its own gets that in any case.
        Raises LocalProtocolError for a request that was not negotiated, for values or descriptors that
        do not fit, and for `need_reply` without REPLY_ACK.
        """
        if need_reply and ProtocolFeature.REPLY_ACK not in self._negotiation.protocol_features:
            raise LocalProtocolError(
                f"{message.label} can ask for a reply only where REPLY_ACK was negotiated"
            )
        try:
            check_request(message, self._negotiation)
        except RefusedError as error:
            raise LocalProtocolError(f"{message.label}: {error}") from None
        payload, fds = message.encode(self._negotiation.xen), tuple(fd.fileno() for fd in message.fds)
        message.need_reply = need_reply
        self._record(message)
        if message.is_replied(self._negotiation):
            self._waiting.append((message, message.reply_type(self._negotiation)))
        flags = VERSION | (NEED_REPLY if need_reply else 0)
        return Packet(pack(message.number, flags, payload), fds)

    def receive(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> list[Reply]:
        """Take the result of one read; return the reply that it completed, if any.

        The session owns `fds` from here on; the reply that is returned owns those that belong to it.
        Empty `data` is the end of the connection. Raises RemoteProtocolError for anything but the reply
        that is due; the session is then broken and raises at each further call.
        """
        if self._broken:
            for fd in fds:
                fd.close()
            raise RemoteProtocolError("the connection was given up after an earlier error")
        try:
            frame = self._framer.feed(data, fds)
            return [] if frame is None else [self._take(frame)]
        except RemoteProtocolError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors that no reply owns. The session is broken afterwards."""
        self._broken = True
        self._framer.close()

    def _record(self, message: Request) -> None:
        try:
            message.negotiate(self._negotiation)
        except ValueError as error:
            raise LocalProtocolError(f"{message.label}: {error}") from None

    def _take(self, frame: Frame) -> Reply:
        reply = None
        try:
            reply = self._match(frame)
            check_fds(reply)
            reply.negotiate(self._negotiation)
        except ValueError as error:
            (reply or frame).close()
            raise RemoteProtocolError(str(error)) from None
        return reply

    def _match(self, frame: Frame) -> Reply:
        """Return the reply, which owns the descriptors. Raises ValueError if another one is due."""
        if not self._waiting:
            raise ValueError(f"message {frame.number} came while no reply was due")
        request, kind = self._waiting[0]
        if frame.number != request.number or frame.flags != REPLY_FLAGS or frame.fault:
            raise ValueError(
                f"the reply to {request.label} was due (number {request.number}, flags {REPLY_FLAGS:#x});"
                f" number {frame.number}, flags {frame.flags:#x} came {frame.fault}".rstrip()
            )
        reply = decode_reply(frame, request, kind, self._negotiation.xen)
        self._waiting.popleft()
        return reply


def decode_reply(frame: Frame, request: Request, kind: type[Reply], xen: bool = False) -> Reply:
    """Return the reply, which owns the descriptors. Raises ValueError if it does not fit `request`."""
    may_be_empty = kind.payload.fits(0, xen) and (frame.fds or 0 in kind.fd_counts)
    if frame.payload or may_be_empty:
        try:
            reply = kind.decode(frame.payload, xen)
        except ValueError as error:
            raise ValueError(f"reply to {request.label}: {error}") from None
        if not request.is_answered_by(reply):
            raise ValueError(f"{request!r} is not answered by {reply!r}")
    else:
        reply = Empty()
    reply.answers, reply.fds = request, frame.take_fds()
    return reply
