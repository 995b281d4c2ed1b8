"""BackendRequests: answers a back-end's own requests, over the socket of SET_BACKEND_REQ_FD."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

from protocol.vhost_user import FrontendChannel, Refused, Reply, describe
from protocol.vhost_user.validation import RefusedError
from vhost_user.transport.answerer import Answerer
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from protocol.io import FdStream
    from protocol.vhost_user import BackendMessage, FrontendSession, Request

    Handler: TypeAlias = Callable[[Any], Awaitable[Reply | None]]

_log = logging.getLogger("vhost_user.frontend")


class BackendRequests:
    """Answers the requests of a back-end by `handlers`.

    A handler refuses by raising RefusedError; what has no handler is refused. It returns the reply,
    whose descriptors are closed once it is sent, or None to acknowledge.
    """

    def __init__(
        self, stream: FdStream, session: FrontendSession, handlers: dict[type[BackendMessage], Handler]
    ) -> None:
        """Take ownership of `stream`. Start `run()` in a task, which closes it in the end."""
        self._stream = stream
        self._channel = FrontendChannel(session)
        self._handlers = handlers

    async def run(self) -> None:
        """Answer until the back-end closes its end. Raises RemoteProtocolError."""
        try:
            await Answerer(self._stream, self._channel, self).run()
        except ConnectionLostError as error:
            _log.info("the back-end's channel is lost: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()
        self._stream.close()

    async def handle(self, request: Request) -> Reply | None:
        """Call the request's handler. Raises RefusedError, also where there is none."""
        handler = self._handlers.get(type(request))  # type: ignore[arg-type]  # all requests here are
        if handler is None:
            raise RefusedError("nothing here can do that")
        return await handler(request)

    def log_refusal(self, request: Request | Refused, reason: str) -> None:
        """Log a request of the back-end that is not done."""
        what = request.label if isinstance(request, Refused) else describe(request)
        _log.warning("%s is refused: %s", what, reason)
