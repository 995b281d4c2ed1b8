"""Ports of the host's at which a Python program listens for the guest itself, without UNIX sockets."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from typing import Self

BACKLOG = 128
"""How many connections a listener may have that it has not accepted; more are refused."""
LAST_PORT = 0xFFFF_FFFE
"""The port after that means any."""


def check_port(port: int) -> int:
    """Return `port`, if there can be one of that number. Raises ValueError."""
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"{port} is no port: 0 to {LAST_PORT}")
    return port


class PortListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts the guest's connections to one port. `Vsock.listen()` makes one; `close()` ends it."""

    def __init__(self, ports: Ports, port: int) -> None:
        self.port = port
        self._ports = ports
        self._waiting: set[socket.socket] = set()
        self._put, self._get = trio.open_memory_channel[socket.socket](math.inf)

    async def accept(self) -> trio.SocketStream:
        """Wait for a connection; the caller closes it. Raises trio.ClosedResourceError once closed."""
        try:
            sock = await self._get.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError(f"nobody listens at port {self.port} any more") from None
        self._waiting.discard(sock)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    def connect(self) -> socket.socket:
        """Return a socket whose other end `accept()` returns. Raises ConnectionRefusedError, OSError."""
        if len(self._waiting) >= BACKLOG:
            raise ConnectionRefusedError(f"{BACKLOG} connections to port {self.port} wait already")
        ours, theirs = socket.socketpair()
        self._waiting.add(theirs)
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


class Ports:
    """The listeners, by port."""

    def __init__(self) -> None:
        self._listeners: dict[int, PortListener] = {}

    def listen(self, port: int) -> PortListener:
        """Return a new listener. Raises ValueError where the port has one, or is none."""
        if check_port(port) in self._listeners:
            raise ValueError(f"somebody listens at port {port} already")
        listener = self._listeners[port] = PortListener(self, port)
        return listener

    def connect(self, port: int) -> socket.socket | None:
        """Return a socket to who listens at `port`; None: nobody does. Raises OSError where it is refused."""
        listener = self._listeners.get(port)
        return None if listener is None else listener.connect()

    def forget(self, listener: PortListener) -> None:
        """Take note that one was closed."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]

    def close(self) -> None:
        """Close all listeners."""
        for listener in list(self._listeners.values()):
            listener.close()
