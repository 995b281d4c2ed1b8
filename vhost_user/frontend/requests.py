"""BackendRequests: what a back-end asks of its front-end, over the socket that SET_BACKEND_REQ_FD passes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from protocol.io.stream import MAX_FDS
from protocol.vhost_user import FrontendChannel, Refused, Reply, describe
from protocol.vhost_user.validation import RefusedError

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
        """Take ownership of `stream`. Somebody must `run()` it, which closes it in the end."""
        self._stream = stream
        self._channel = FrontendChannel(session)
        self._handlers = handlers

    async def run(self) -> None:
        """Answer until the back-end closes its end. Raises RemoteProtocolError."""
        try:
            while await self._receive():
                pass
        except OSError as error:
            _log.info("the back-end's channel is lost: %s", error.strerror)
        except trio.ClosedResourceError:
            pass  # by close()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket."""
        self._channel.close()
        self._stream.close()

    async def _receive(self) -> bool:
        data, fds = await self._stream.receive(self._channel.bytes_wanted, MAX_FDS)
        for request in self._channel.receive(data, fds):
            await self._answer(request)
        return bool(data)

    async def _answer(self, request: Request | Refused) -> None:
        ok, reply = await self._handle(request)
        try:
            if reply is None or isinstance(request, Refused):
                packet = self._channel.acknowledge(request, ok)
            else:
                packet = self._channel.reply(request, reply)
            if packet is not None:
                await self._stream.send(*packet)
        finally:
            if reply is not None:
                reply.close()

    async def _handle(self, request: Request | Refused) -> tuple[bool, Reply | None]:
        if isinstance(request, Refused):
            _log.warning("%s", request)
            return False, None
        try:
            handler = self._handlers.get(type(request))  # type: ignore[arg-type]  # all requests here are
            if handler is None:
                raise RefusedError("nothing here can do that")
            return True, await handler(request)
        except RefusedError as error:
            _log.warning("%s is refused: %s", describe(request), error)
            return False, None
        finally:
            request.close()
