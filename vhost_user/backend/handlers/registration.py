"""The table of handlers, which the modules beside this one fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from protocol.vhost_user import Request
    from vhost_user.backend.state import ConnectionState
    from vhost_user.transport.answerer import Answer

    _R = TypeVar("_R", bound=Request)
    _Handler: TypeAlias = Callable[[ConnectionState, _R], Awaitable[Answer]]

HANDLERS: dict[type[Request], Callable[[ConnectionState, Any], Awaitable[Answer]]] = {}
"""The handler of each request.

It refuses by raising RefusedError, BadRegionError or MappingError: the front-end gets a non-zero
acknowledgement if it asked for one, and the log a line in any case. A handler never waits for the
front-end, which waits for it.
"""


def register(request: type[_R]) -> Callable[[_Handler[_R]], _Handler[_R]]:
    """Make the decorated function the handler of a request."""

    def enter(handler: _Handler[_R]) -> _Handler[_R]:
        HANDLERS[request] = handler
        return handler

    return enter
