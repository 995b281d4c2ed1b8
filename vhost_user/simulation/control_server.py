"""The control socket (--control): calls as lines of JSON, in the manner of QEMU's QMP.

::

    > {"execute": "set_temperature", "on": "0x48", "arguments": {"celsius": 21.5}, "id": 1}
    < {"return": null, "id": 1}
    > {"execute": "melt"}
    < {"error": "there is no call 'melt'; ..."}
    > {"execute": "subscribe"}
    < {"return": null}
    < {"event": "written", "on": "0x50", "data": {"address": 0}}

`on` names a part, `id` comes back with the answer. Calls are made in the order of their lines, and
each is answered before the next is made. `help` tells what there is. docs/control.md says it to users.

How it works: each client has two tasks. One reads lines and makes their calls, one after the other; while a
call is made, a third watches whether the client has gone, which cancels the call. The other, after
`subscribe`, sends events. A lock keeps their lines whole. A client that does not read is left once its
events are lost, since a task that waits to send cannot tell it so; nothing of it is kept. The calls of
several clients interleave wherever one awaits. The socket is removed when the server is cancelled; after a
crash it stays, refuses connections, and the next server replaces it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import trio

from protocol.io import listen, until_hung_up
from protocol.io.background import unwrap_group
from vhost_user.own_code.containment import Containment
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    import os

    from protocol.io import FdStream
    from vhost_user.simulation.simulation import Event, Simulation

MAX_LINE = 1 << 20
"""Most bytes of a request."""

MODE = 0o600
"""Permissions of the socket: who may connect can do anything with the device."""

_CHUNK = 65536
_KEYS = {"execute", "on", "arguments", "id"}

_log = logging.getLogger("vhost_user")


async def serve_control(
    simulation: Simulation,
    path: str | os.PathLike[str],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Offer the calls of `simulation` at the UNIX socket `path`, to any number of clients, until cancelled.

    Started in a nursery, it is ready once clients can connect. Removes the socket in the end. Raises
    SocketInUseError where somebody listens there, OSError.
    """
    own = Containment(_log)
    with listen(str(path), mode=MODE) as listener:
        task_status.started()
        async with trio.open_nursery() as nursery:
            while True:
                stream = await listener.accept_patiently(_log_accept_failure)
                nursery.start_soon(_serve_client, simulation, stream, own)


def _log_accept_failure(reason: str) -> None:
    _log.warning("the control socket can take no client: %s; trying again", reason)


async def _serve_client(simulation: Simulation, stream: FdStream, own: Containment) -> None:
    """Serve one client until it has gone; close the connection."""
    with stream:
        async with trio.open_nursery() as nursery:
            with contextlib.suppress(OSError):  # it has gone
                await _Client(simulation, stream, nursery, own).serve()
            nursery.cancel_scope.cancel()


class _Client:
    """A connection: its lines, its answers, and the events it asked for, sent by a task in `nursery`."""

    def __init__(
        self, simulation: Simulation, stream: FdStream, nursery: trio.Nursery, own: Containment
    ) -> None:
        self._own = own
        self._simulation = simulation
        self._stream = stream
        self._nursery = nursery
        self._sending = trio.Lock()
        self._subscribed = False

    async def serve(self) -> None:
        """Answer each line; return after the last one. Raises OSError where the client has gone."""
        rest = b""
        while (received := await self._stream.receive(_CHUNK, 0))[0]:
            *lines, rest = (rest + received[0]).split(b"\n")
            for line in filter(bytes.strip, lines):
                await self._answer(line)
            if len(rest) > MAX_LINE:
                await self._send(_encode({"error": f"a line is longer than {MAX_LINE} bytes"}))
                return
        if rest.strip():
            await self._answer(rest)
        if self._subscribed:
            await until_hung_up(self._stream.fileno())  # it still reads its events

    async def _answer(self, line: bytes) -> None:
        """Make a call and send its result, but not for a client that goes away meanwhile."""
        answer = None
        async with trio.open_nursery() as meanwhile:
            meanwhile.start_soon(self._cancel_when_gone, meanwhile.cancel_scope)
            answer = await self._result(line)
            meanwhile.cancel_scope.cancel()
        if answer is not None:
            await self._send(answer)

    async def _result(self, line: bytes) -> bytes:
        """Make a call; return the line that answers it."""
        identity: dict[str, object] = {}
        name = ""
        try:
            request = _parse(line)
            name = request["execute"]
            identity = {"id": request["id"]} if "id" in request else {}
            return _encode({"return": await self._execute(request), **identity})
        except Exception as raised:
            error = unwrap_group(raised)
            if isinstance(error, ValueError | OSError):
                return _encode({"error": str(error), **identity})
            self._own.failed(f"the call '{name}'", "its caller is told", raised)
            return _encode({"error": f"the call failed: {type(error).__name__}: {error}", **identity})

    async def _execute(self, request: dict[str, Any]) -> object:
        name = request["execute"]
        if name == "help":
            return describe(self._simulation)
        if name == "subscribe":
            if not self._subscribed:
                self._subscribed = True
                await self._nursery.start(self._send_events)
            return None
        part = self._simulation.find(request.get("on") or "")
        return await part.find_call(name).make(request.get("arguments") or {})

    async def _send_events(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._simulation.events(self._leave) as events:
            task_status.started()
            try:
                async for event in events:
                    if line := self._event_line(event):
                        await self._send(line)
            except OSError:
                self._nursery.cancel_scope.cancel()  # it has gone

    def _event_line(self, event: Event) -> bytes:
        """Return the line that tells of an event; b"", and a log entry, where JSON cannot say its data."""
        on = {"on": event.on} if event.on else {}
        with self._own.code(f"telling of the event '{event.name}'", "it is not told"):
            return _encode({"event": event.name, **on, "data": event.data})
        return b""

    def _leave(self) -> None:
        """Leave a client that does not fetch its events, and does not wait for any more of them."""
        _log.warning("a client of the control socket is too slow for its events, and is left")
        self._nursery.cancel_scope.cancel()

    async def _send(self, line: bytes) -> None:
        async with self._sending:
            await self._stream.send(line)

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        await until_hung_up(self._stream.fileno())
        scope.cancel()


def describe(simulation: Simulation, on: str = "") -> list[dict[str, object]]:
    """Return what can be called, on itself and its parts, as `help` answers."""
    own: list[dict[str, object]] = [
        {"call": name, "on": on, "arguments": found.arguments, "help": found.help}
        for name, found in simulation.calls().items()
    ]
    prefix = f"{on}/" if on else ""
    for name, part in simulation.parts.items():
        own += describe(part, prefix + name)
    return own


def _parse(line: bytes) -> dict[str, Any]:
    """Return a request. Raises CallError."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CallError(f"no line of JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("execute"), str):
        raise CallError('a request is {"execute": NAME, "on": PART, "arguments": {...}, "id": ANY}')
    if unknown := request.keys() - _KEYS:
        raise CallError(f"a request has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(_KEYS))}")
    if not isinstance(request.get("on", ""), str | None):
        raise CallError("'on' has to be the name of a part")
    if not isinstance(request.get("arguments", {}), dict | None):
        raise CallError("'arguments' has to be an object")
    return request


def _encode(message: object) -> bytes:
    """Return a line. Raises TypeError for what JSON cannot say."""
    return json.dumps(message, default=_plain).encode() + b"\n"


def _plain(value: object) -> object:
    """Return what JSON has for values that it does not know."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} cannot be told in JSON")
