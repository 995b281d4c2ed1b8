"""The proxy of a trace, on both sockets of each connection."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import trio

from protocol.fds import OwnedFd
from protocol.io import FdStream, connect, exhaustion
from protocol.vhost_user import (
    BACKEND_REQUESTS,
    FRONTEND_REQUESTS,
    FrontendRequest,
    ObservedNegotiation,
    Observer,
)
from vhost_user.trace.events import Message, Note, Side
from vhost_user.trace.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protocol.io import Listener
    from protocol.vhost_user import Frame, Observed, Request
    from vhost_user.trace.events import Event
    from vhost_user.trace.relay import Raw

REMEMBERED_REQUESTS = 64
"""Requests whose time is recorded until their reply comes; most of them are not answered."""


async def trace(listener: Listener, path: str, sink: Callable[[Event], None]) -> NoReturn:
    """Connect each client of `listener` with the socket at `path`, by a connection of its own.

    The side that speaks first is the front-end, so the back-end may be on either. `sink` gets each
    message before it is passed on; its exceptions end the trace. The listener stays the caller's.
    At the limit of open files, or of memory, connections wait until they can be accepted. Raises
    OSError if the listener fails for another reason.
    """
    async with trio.open_nursery() as nursery:
        for number in itertools.count(1):
            recorder = TraceSink(number, sink)
            stream = await listener.accept_patiently(recorder.refuse)
            nursery.start_soon(_serve, stream, path, recorder)
    raise AssertionError("numbers came to an end")


class TraceSink:
    """Passes the events of one connection to the sink of the trace."""

    def __init__(self, connection: int, sink: Callable[[Event], None]) -> None:
        self._connection = connection
        self._sink = sink

    def refuse(self, reason: str) -> None:
        """Pass on that no connection can be accepted at present, and why."""
        self.note(f"no connection can be accepted: {reason}")

    def note(self, text: str, data: bytes = b"") -> None:
        """Pass on an event that is not a message."""
        self._sink(Note(self._connection, text, data))

    def message(
        self,
        sender: Side,
        frame: Frame,
        observed: Observed,
        *,
        channel: bool,
        is_reply: bool,
        seconds: float | None,
    ) -> None:
        """Pass on a message."""
        self._sink(Message(self._connection, sender, channel, frame, observed, is_reply, seconds))


async def _serve(accepted: FdStream, path: str, sink: TraceSink) -> None:
    with accepted:
        sink.note(f"{_peer_name(accepted)} connected")
        try:
            connected = await connect(path)
        except OSError as error:
            sink.note(f"cannot connect to {path}: {exhaustion.cause_and_remedy(error)}")
            return
        with connected:
            await _Connection(sink).run(*await _frontend_first(accepted, connected, sink))


def _peer_name(stream: FdStream) -> str:
    pid = stream.peer_credentials().pid
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        name = "?"
    return f"process {pid} ({name})"


async def _frontend_first(
    accepted: FdStream, connected: FdStream, sink: TraceSink
) -> tuple[FdStream, FdStream]:
    """Wait until one side speaks, which is the front-end. Return the front-end and the other side."""
    speakers: list[FdStream] = []

    async def wait_for(stream: FdStream, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(stream.fileno())
        speakers.append(stream)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, accepted, nursery.cancel_scope)
        nursery.start_soon(wait_for, connected, nursery.cancel_scope)
    if speakers[0] is accepted:
        return accepted, connected
    sink.note("this is the back-end: the other side speaks first")
    return connected, accepted


class _Connection:
    """A front-end's connection to a back-end, with the back-end's channel once there is one."""

    def __init__(self, sink: TraceSink) -> None:
        self._sink = sink
        self._negotiation = ObservedNegotiation()
        self._nursery: trio.Nursery | None = None

    async def run(self, frontend: FdStream, backend: FdStream) -> None:
        """Pass everything on until one of the two has left."""
        socket = _SocketListener(
            self._sink, Side.FRONTEND, FRONTEND_REQUESTS, self._negotiation, self._intercept
        )
        async with trio.open_nursery() as self._nursery:
            await Relay(frontend, backend, socket).run()
            self._nursery.cancel_scope.cancel()

    def _intercept(self, frame: Frame) -> None:
        """Replace the socket for the back-end's requests by one of our own."""
        if frame.number != FrontendRequest.SET_BACKEND_REQ_FD or len(frame.fds) != 1:
            return
        try:
            backend, frontend, passed_on = _insert_between(frame.fds[0])
        except OSError as error:
            self._sink.note(f"the back-end's requests cannot be traced: {exhaustion.cause_and_remedy(error)}")
            return
        frame.fds = [passed_on]
        assert self._nursery is not None
        self._nursery.start_soon(self._run_channel, backend, frontend)

    async def _run_channel(self, backend: FdStream, frontend: FdStream) -> None:
        socket = _SocketListener(self._sink, Side.BACKEND, BACKEND_REQUESTS, self._negotiation)
        with backend, frontend:
            await Relay(backend, frontend, socket).run()


def _insert_between(fd: OwnedFd) -> tuple[FdStream, FdStream, OwnedFd]:
    """Return our end towards the back-end, our end towards the front-end (`fd`), and the back-end's end.

    Closes `fd`. Raises OSError if `fd` is not a socket, and at the limit of open files; `fd` stays open then.
    """
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        # Modes belong to the socket, which the back-end expects as the front-end has made it.
        theirs.setblocking(os.get_blocking(fd.fileno()))
        copy = stack.enter_context(fd.dup())
        frontend = socket.socket(fileno=copy.fileno())
        copy.detach()
        fd.close()
        stack.pop_all()
    return FdStream(ours), FdStream(frontend), OwnedFd(theirs.detach())


class _SocketListener:
    """The listener of the relay of one socket: decodes messages and records them."""

    def __init__(
        self,
        sink: TraceSink,
        requester: Side,
        table: Mapping[int, type[Request]],
        negotiation: ObservedNegotiation,
        intercept: Callable[[Frame], None] = lambda _: None,
    ) -> None:
        self._sink = sink
        self._requester = requester
        self._observer = Observer(table, negotiation)
        self._intercept = intercept
        self._times: deque[tuple[object, float]] = deque(maxlen=REMEMBERED_REQUESTS)

    @property
    def _channel(self) -> bool:
        return self._requester is Side.BACKEND

    @property
    def _name(self) -> str:
        return "channel" if self._channel else "connection"

    def _side(self, from_requester: bool) -> Side:
        return self._requester if from_requester else self._requester.other

    def message(self, frame: Frame, *, from_requester: bool) -> None:
        """Decode a message and record it."""
        observed = self._observer.request(frame) if from_requester else self._observer.reply(frame)
        self._sink.message(
            self._side(from_requester),
            frame,
            observed,
            channel=self._channel,
            is_reply=not from_requester,
            seconds=self._seconds(observed),
        )
        if from_requester:
            self._intercept(frame)

    def _seconds(self, observed: Observed) -> float | None:
        """Record the time of a request; return the seconds between a reply and its request."""
        now = time.monotonic()
        if observed.request is None:
            if observed.message is not None:
                self._times.append((observed.message, now))
            return None
        return next((now - then for request, then in self._times if request is observed.request), None)

    def raw(self, raw: Raw, *, from_requester: bool) -> None:
        """Record bytes that cannot be decoded."""
        sender = self._side(from_requester)
        self._sink.note(
            f"{len(raw.data)} bytes from the {sender} on the {self._name} are not a message: {raw.reason}",
            raw.data,
        )

    def ended(self, reason: str, *, from_requester: bool) -> None:
        """Record that one side has ended."""
        self._sink.note(f"{self._name} {reason} by the {self._side(from_requester)}")
