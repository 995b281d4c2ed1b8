"""Ports of the host at which a Python program listens itself, without UNIX sockets."""

from __future__ import annotations

import logging
import math
import socket
from typing import TYPE_CHECKING

import trio

from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

BACKLOG = 128
"""How many connections a listener may have that it has not accepted; more are refused."""
LAST_PORT = 0xFFFF_FFFE
"""The port after that means any."""

_log = logging.getLogger("vhost_user.vsock")


def check_port(port: int) -> int:
    """Return `port`, if there can be one of that number. Raises ValueError."""
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"{port} is not a port: give 0 to {LAST_PORT}")
    return port


class PortListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts the guest's connections to one port. `Vsock.listen()` makes one; `close()` ends it."""

    def __init__(self, ports: HostPorts, port: int) -> None:
        self.port = port
        self._ports = ports
        self._own = Containment(_log)
        self._waiting: dict[socket.socket, Callable[[], None]] = {}
        """What waits to be accepted, with what resets it."""
        self._put, self._get = trio.open_memory_channel[socket.socket](math.inf)

    async def accept(self) -> trio.SocketStream:
        """Wait for a connection; the caller closes it. Raises trio.ClosedResourceError once closed."""
        stream, _ = await self._accept()
        return stream

    async def serve(self, handler: Callable[[trio.SocketStream], Awaitable[object]]) -> None:
        """Call `handler()` for each connection, in a task of its own; return once this listener is closed.

        The connection is closed when its handler returns. What a handler raises resets its connection
        and is in the log, once for each place; all others go on. A guest that has gone is not a failure.
        """
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream, reset = await self._accept()
                except trio.ClosedResourceError:
                    return
                nursery.start_soon(self._handle, handler, stream, reset)

    async def _handle(
        self,
        handler: Callable[[trio.SocketStream], Awaitable[object]],
        stream: trio.SocketStream,
        reset: Callable[[], None],
    ) -> None:
        what = f"the handler of port {self.port}"
        async with stream:
            with self._own.code(
                what, "its connection is reset", expected=trio.BrokenResourceError
            ) as attempt:
                await handler(stream)
            if attempt.failed:
                reset()

    async def _accept(self) -> tuple[trio.SocketStream, Callable[[], None]]:
        try:
            sock = await self._get.receive()
            reset = self._waiting.pop(sock)
        except (trio.EndOfChannel, KeyError):  # the latter where it was closed just now, with its connections
            raise trio.ClosedResourceError(f"no one listens at port {self.port} any more") from None
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock)), reset

    def connect(self, reset: Callable[[], None]) -> socket.socket:
        """Return a socket whose other end `accept()` returns; `reset()` ends what is joined to it.

        Raises ConnectionRefusedError, OSError.
        """
        if len(self._waiting) >= BACKLOG:
            raise ConnectionRefusedError(f"{BACKLOG} connections to port {self.port} wait already")
        ours, theirs = socket.socketpair()
        self._waiting[theirs] = reset
        self._put.send_nowait(theirs)
        return ours

    def close(self) -> None:
        """Listen no more; close what was not accepted, and let who waits in `accept()` know."""
        self._ports.forget(self)
        self._put.close()
        self._get.close()
        for sock in self._waiting:
            sock.close()
        self._waiting.clear()

    async def aclose(self) -> None:
        """As `close()`."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HostPorts:
    """The listeners, by port."""

    def __init__(self) -> None:
        self._listeners: dict[int, PortListener] = {}

    def listen(self, port: int) -> PortListener:
        """Return a new listener. Raises ValueError where the port has one, or is none."""
        if check_port(port) in self._listeners:
            raise ValueError(f"somebody listens at port {port} already")
        listener = self._listeners[port] = PortListener(self, port)
        return listener

    def connect(self, port: int, reset: Callable[[], None]) -> socket.socket | None:
        """Return a socket to who listens at `port`; None: no one does. `reset()` ends what is joined to it.

        Raises OSError where it is refused.
        """
        listener = self._listeners.get(port)
        return None if listener is None else listener.connect(reset)

    def forget(self, listener: PortListener) -> None:
        """Take note that one was closed."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]

    def close(self) -> None:
        """Close all listeners."""
        for listener in list(self._listeners.values()):
            listener.close()
