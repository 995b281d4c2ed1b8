"""The client of a control socket, for programs and tests."""

from __future__ import annotations

import json
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from protocol.io import connect as connect_socket
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.control_server import MAX_LINE
from vhost_user.simulation.simulation import Event

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from protocol.io import FdStream

_CHUNK = 65536
_SHOWN_BYTES = 80
_CLOSED = "the program has closed the control socket; see what it printed"


class ControlError(OSError):
    """The program behind the control socket has ended, or says what no such program says."""


class ControlClient:
    """Calls and events of a program's simulation; used by one task at a time. `connect()` makes one."""

    def __init__(self, stream: FdStream) -> None:
        self._stream = stream
        self._rest = b""
        self._lines: deque[bytes] = deque()
        self._events: deque[Event] = deque()
        self._is_subscribed = False
        self._number = 0

    async def call(self, name: str, /, *, on: str = "", **arguments: object) -> Any:
        """Call `name` of the part `on`, "" for the whole; return the result as JSON has it.

        Raises CallError where the call is refused, ControlError where the program has gone.
        """
        self._number += 1
        request = {"execute": name, "on": on, "arguments": arguments, "id": self._number}
        line = json.dumps(request, default=_plain).encode()
        if len(line) > MAX_LINE:
            raise CallError(f"{name}: the request has more than {MAX_LINE} bytes; make several calls")
        await self._send(line + b"\n")
        while True:
            message = await self._receive()
            if message.get("id") != self._number:
                continue
            if "error" in message:
                raise CallError(message["error"])
            return message["return"]

    async def subscribe(self) -> None:
        """Have events kept from now on, for `next_event()`."""
        if not self._is_subscribed:
            self._is_subscribed = True
            await self.call("subscribe")

    async def next_event(self) -> Event:
        """Wait for the next event since `subscribe()`, which this calls first. Raises ControlError."""
        await self.subscribe()
        while not self._events:
            await self._receive()
        return self._events.popleft()

    async def _send(self, line: bytes) -> None:
        try:
            await self._stream.send(line)
        except OSError as error:
            raise ControlError(_CLOSED) from error

    async def _receive(self) -> dict[str, Any]:
        """Wait for the next message; an event is kept as well."""
        line = await self._line()
        try:
            message = json.loads(line)
            if "event" in message:
                self._events.append(Event(message["event"], message["data"], message.get("on", "")))
            elif not message.keys() & {"return", "error"}:
                raise KeyError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            said = line[:_SHOWN_BYTES].decode(errors="replace")
            raise ControlError(
                f"this is not an answer of a control socket: {said!r}; give the path of a device's --control"
            ) from None
        return message  # type: ignore[no-any-return]

    async def _line(self) -> bytes:
        while not self._lines:
            data, _ = await self._stream.receive(_CHUNK, 0)
            if not data:
                raise ControlError(_CLOSED)
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        return self._lines.popleft()


@asynccontextmanager
async def connect(path: str | os.PathLike[str]) -> AsyncIterator[ControlClient]:
    """Connect to the control socket at `path` for the length of an `async with` block. Raises OSError."""
    with await connect_socket(str(path)) as stream:
        yield ControlClient(stream)


def _plain(value: object) -> object:
    """Return what JSON has for bytes."""
    if isinstance(value, bytes | bytearray):
        return bytes(value).hex()
    raise TypeError(f"{value!r} cannot be told in JSON")
