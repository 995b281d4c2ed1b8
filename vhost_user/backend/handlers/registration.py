"""The table of handlers, which the modules beside this one fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from protocol.vhost_user import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vhost_user.backend.state import Backend

Answer: TypeAlias = Reply | int | None
"""What a handler returns: the reply, whose descriptors are closed once it is sent; the one number in
it; or None where the request is acknowledged, if anything.
"""

_R = TypeVar("_R", bound=Request)

HANDLERS: dict[type[Request], Callable[[Backend, Any], Awaitable[Answer]]] = {}
"""The handler of each request.

It refuses by raising RefusedError, BadRegionError or MappingError: the front-end gets a non-zero
acknowledgement if it asked for one, and the log a line in any case. Never does a handler wait for
the front-end, which waits for it.
"""


def handles(
    request: type[_R],
) -> Callable[[Callable[[Backend, _R], Awaitable[Answer]]], Callable[[Backend, _R], Awaitable[Answer]]]:
    """Make the decorated function the handler of a request."""

    def enter(
        handler: Callable[[Backend, _R], Awaitable[Answer]],
    ) -> Callable[[Backend, _R], Awaitable[Answer]]:
        HANDLERS[request] = handler
        return handler

    return enter
