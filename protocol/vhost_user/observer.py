"""An observer of one socket between two others: decodes all messages, for a trace.

It refuses none. Frames keep their descriptors, to be passed on; the messages that it returns have none.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from protocol.vhost_user.framing import REPLY_FLAGS
from protocol.vhost_user.message import describe
from protocol.vhost_user.requester import decode_reply
from protocol.vhost_user.validation import check_fds, check_request, decode_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protocol.vhost_user.framing import Frame
    from protocol.vhost_user.message import Message, Reply, Request
    from protocol.vhost_user.negotiation import ObservedNegotiation


@dataclass
class Observed:
    """A decoded frame: its text in one line, and its fault, if any."""

    text: str
    problem: str = ""
    message: Message | None = None
    """The message without its descriptors, which the frame keeps; None if it could not be decoded."""
    request: Request | None = None
    """Of a reply: its request."""

    def __str__(self) -> str:
        return f"{self.text} (wrong: {self.problem})" if self.problem else self.text


class Observer:
    """Follows one socket: requests of one side, replies of the other.

    The two sockets of a connection have an observer each, with the same `negotiation`.
    """

    def __init__(self, table: Mapping[int, type[Request]], negotiation: ObservedNegotiation) -> None:
        self._table = table
        self._negotiation = negotiation
        self._waiting: deque[tuple[Request, type[Reply]]] = deque()

    def request(self, frame: Frame) -> Observed:
        """Decode a frame from the side that makes requests."""
        try:
            request = decode_request(frame, self._table, self._negotiation.xen)
        except ValueError as error:
            return Observed(_undecoded(frame, self._table), str(error))
        problems = [
            _problem(partial(check_request, request, self._negotiation)),
            _problem(partial(request.negotiate, self._negotiation)),
        ]
        if request.is_replied(self._negotiation):
            self._waiting.append((request, request.reply_type(self._negotiation)))
        return Observed(_text(request, frame), _joined(problems), request)

    def reply(self, frame: Frame) -> Observed:
        """Decode a frame from the side that answers."""
        text = f"reply to {_undecoded(frame, self._table)}"
        if not any(request.number == frame.number for request, _ in self._waiting):
            return Observed(text, "no such reply is due")
        request, kind = self._next(frame.number)
        try:
            reply = decode_reply(frame, request, kind, self._negotiation.xen)
        except ValueError as error:
            return Observed(text, str(error), request=request)
        reply.negotiate(self._negotiation)
        problems = [_problem(partial(check_fds, reply))]
        if frame.flags != REPLY_FLAGS:
            problems.append(f"its flags are {frame.flags:#x}, not {REPLY_FLAGS:#x}")
        return Observed(_text(reply, frame), _joined(problems), reply, request)

    def _next(self, number: int) -> tuple[Request, type[Reply]]:
        """Return the first waiting request with this number; the ones before it were never answered."""
        while self._waiting[0][0].number != number:
            self._waiting.popleft()
        return self._waiting.popleft()


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except ValueError as error:
        return str(error)
    return ""


def _joined(problems: list[str]) -> str:
    return ", ".join(problem for problem in problems if problem)


def _text(message: Message, frame: Frame) -> str:
    """Return the message as text, and its descriptors to the frame."""
    text = describe(message)
    frame.fds = list(message.take_fds())
    return text


def _undecoded(frame: Frame, table: Mapping[int, type[Request]]) -> str:
    kind = table.get(frame.number)
    name = kind.number.name if kind else f"request {frame.number}"
    return f"{name} flags={frame.flags:#x} size={len(frame.payload)} fds={len(frame.fds)}"
