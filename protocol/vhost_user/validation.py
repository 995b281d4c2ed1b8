"""The checks that every request passes, where it is sent and where it is received.

They are the same for all messages, and enforce the statements of the message's class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import BackendMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.vhost_user.framing import Frame
    from protocol.vhost_user.message import Message, Request
    from protocol.vhost_user.negotiation import Negotiation


class RefusedError(ValueError):
    """A message is refused; the text is the reason, in one line."""


def decode_request(frame: Frame, table: Mapping[int, type[Request]], xen: bool = False) -> Request:
    """Return the request, which owns the frame's descriptors from now on.

    Only its form is checked. Raises ValueError for an unknown number and for a wrong payload; the frame
    keeps its descriptors then.
    """
    if frame.fault:
        raise RefusedError(frame.fault)
    if frame.is_reply:
        raise RefusedError("it is a reply where a request is due")
    kind = table.get(frame.number)
    if kind is None:
        raise RefusedError("its number is not known")
    request = kind.decode(frame.payload, xen)
    request.need_reply = frame.need_reply
    request.fds = frame.take_fds()
    return request


def check_request(request: Request, negotiation: Negotiation) -> None:
    """Raise RefusedError if `request` may not be sent now, or not with these descriptors."""
    if missing := negotiation.missing(request.requirement):
        raise RefusedError(f"it needs {missing}, which was not negotiated")
    check_fds(request)
    if request.fds and isinstance(request, BackendMessage):
        _check_backend_fds(negotiation)


def check_fds(message: Message) -> None:
    """Raise RefusedError if more or fewer descriptors came with `message` than belong to it."""
    allowed = message.allowed_fds()
    if len(message.fds) not in allowed:
        due = " or ".join(str(count) for count in sorted(allowed))
        raise RefusedError(f"{len(message.fds)} file descriptors came with it; {due} belong to it")


def drop_discarded(request: Request) -> None:
    """Close superfluous descriptors that the specification tolerates."""
    if len(request.fds) <= request.discarded_fds:
        request.close()


def _check_backend_fds(negotiation: Negotiation) -> None:
    if ProtocolFeature.BACKEND_SEND_FD not in negotiation.protocol_features:
        raise RefusedError("its file descriptor needs BACKEND_SEND_FD, which was not negotiated")
