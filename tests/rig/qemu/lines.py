"""A line-based connection to QEMU: what qtest and QMP have in common."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from contextlib import ExitStack

#: QEMU answers in microseconds; a machine under load may need seconds. Beyond that it hangs.
ANSWER_SECONDS = 60


class QemuGoneError(Exception):
    """QEMU has closed the connection: it ended, by itself or by a crash."""


class LineChannel:
    """A stream socket that carries lines. Whoever made the socket closes it."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._buffer = bytearray()

    async def send(self, line: bytes) -> None:
        """Send `line` and a newline. Raises QemuGoneError."""
        data = memoryview(line + b"\n")
        try:
            while data:
                data = data[await self._sock.send(data) :]
        except (BrokenPipeError, ConnectionResetError) as error:
            raise QemuGoneError("QEMU closed the connection") from error

    async def receive(self) -> bytes:
        """Return the next line, without its end. Raises QemuGoneError. Cancelled, it loses nothing."""
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = await self._sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise QemuGoneError("QEMU closed the connection")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.rstrip(b"\r")


def connection(stack: ExitStack) -> tuple[LineChannel, socket.socket]:
    """Return our end and QEMU's end of a new connection; `stack` closes both."""
    ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
    return LineChannel(trio.socket.from_stdlib_socket(ours)), theirs
