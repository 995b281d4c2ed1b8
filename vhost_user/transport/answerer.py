"""Answerer: receives requests over a stream, and answers them in their order."""

# How it works: both ends of vhost-user that answer are an answerer: the back-end's on its connection, the
# front-end's on the channel for the back-end's own requests. One task runs it. That task alone reads the
# stream, calls the handler and sends the answer, so a handler may wait for anything but the other side's
# next request. The session decides what is a request, and which reply is owed; the handler decides what is
# done.
#
# Descriptors: the session owns what came until it returns the request, which owns them then. The handler
# takes those that it keeps; the rest is closed when it returns. A reply owns its descriptors until it is
# sent, and is closed then, also where it cannot be sent. Whoever made the stream closes it.

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from protocol.io.stream import MAX_FDS
from protocol.vhost_user import Refused, Reply
from protocol.vhost_user.validation import RefusedError
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from protocol.io import FdStream
    from protocol.vhost_user import Request
    from protocol.vhost_user.responder import Responder

Answer: TypeAlias = Reply | int | None
"""What a handler returns.

A reply, whose descriptors are closed once it is sent; the only number in the reply; or None if the request
is acknowledged at most.
"""


class RequestHandler(Protocol):
    """Does what the requests ask for."""

    async def handle(self, request: Request) -> Answer:
        """Do what is asked for. Raises RefusedError; the request is closed afterwards in any case."""

    def log_refusal(self, request: Request | Refused, reason: str) -> None:
        """Log a request that is not done, for `reason`."""


class Answerer:
    """Answers the requests that `session` finds in `stream`, with what `handler` returns for them."""

    def __init__(self, stream: FdStream, session: Responder, handler: RequestHandler) -> None:
        """Use `stream` and `session`, which stay the caller's to close."""
        self._stream = stream
        self._session = session
        self._handler = handler

    async def run(self) -> None:
        """Answer until the other side closes its end, or the stream is closed here.

        Raises ConnectionLostError, and RemoteProtocolError for what is not a request.
        """
        while True:
            try:
                data, fds = await self._stream.receive(self._session.bytes_wanted, MAX_FDS)
            except OSError as error:
                raise ConnectionLostError(error.strerror) from None
            except trio.ClosedResourceError:
                return
            for request in self._session.receive(data, fds):
                ok, answer = await self._handle(request)
                try:
                    if answer is None or isinstance(request, Refused):
                        packet = self._session.acknowledge(request, ok)
                    else:
                        packet = self._session.reply(request, answer)
                    if packet is not None:
                        await self._stream.send(*packet)
                except OSError as error:
                    raise ConnectionLostError(error.strerror) from None
                finally:
                    if isinstance(answer, Reply):
                        answer.close()
            if not data:
                return

    async def _handle(self, request: Request | Refused) -> tuple[bool, Answer]:
        """Return whether the request was done, and what to answer."""
        if isinstance(request, Refused):
            self._handler.log_refusal(request, request.reason)
            return False, None
        try:
            return True, await self._handler.handle(request)
        except RefusedError as error:
            self._handler.log_refusal(request, str(error))  # no traceback is kept
            return False, None
        finally:
            if request.fds:
                request.close()
