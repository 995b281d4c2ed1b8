"""Sits between front-ends and a back-end, and tells what they say to each other, on both sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

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
from vhost_user.trace.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from protocol.io import Listener
    from protocol.vhost_user import Frame, Observed, Request
    from vhost_user.trace.relay import Raw

RETRY_SECONDS = 0.1
"""How long to wait where no connection could be accepted: at the limit of open files."""

REMEMBERED_REQUESTS = 64
"""Requests whose time is kept until their reply comes; most of them never get one."""


class Side(StrEnum):
    """Who says something."""

    FRONTEND = "front-end"
    BACKEND = "back-end"


@dataclass(frozen=True)
class Message:
    """A message, seen before it was passed on."""

    connection: int
    sender: Side
    channel: bool
    """True on the socket for the back-end's own requests."""
    frame: Frame
    """The message as it came; its descriptors are there only until the next message."""
    observed: Observed
    is_reply: bool
    seconds: float | None
    """Of a reply: how long after its request it came."""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Note:
    """Something that happened beside the messages, in one line."""

    connection: int
    text: str
    data: bytes = b""
    """Bytes that were passed on and are no message."""
    time: float = field(default_factory=time.time)


Event: TypeAlias = Message | Note


async def trace(listener: Listener, path: str, sink: Callable[[Event], None]) -> NoReturn:
    """Connect whoever connects to `listener` with the socket at `path`, each by a connection of its own.

    Whichever side speaks first is the front-end, so the back-end may be on either. `sink` is told of
    each message before it is passed on; what it raises ends the trace. The listener stays the caller's.
    """
    async with trio.open_nursery() as nursery:
        for number in itertools.count(1):
            stream = await _accept(listener, number, sink)
            nursery.start_soon(_serve, stream, path, _Teller(number, sink))
    raise AssertionError("numbers came to an end")


async def _accept(listener: Listener, number: int, sink: Callable[[Event], None]) -> FdStream:
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            sink(Note(number, f"no connection can be accepted: {exhaustion.cause_and_remedy(error)}"))
            await trio.sleep(RETRY_SECONDS)


class _Teller:
    """Tells of one connection."""

    def __init__(self, connection: int, sink: Callable[[Event], None]) -> None:
        self._connection = connection
        self._sink = sink

    def note(self, text: str, data: bytes = b"") -> None:
        """Tell of something that is no message."""
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
        """Tell of a message."""
        self._sink(Message(self._connection, sender, channel, frame, observed, is_reply, seconds))


async def _serve(accepted: FdStream, path: str, teller: _Teller) -> None:
    with accepted:
        teller.note(f"{_who(accepted)} connected")
        try:
            connected = await connect(path)
        except OSError as error:
            teller.note(f"nobody to connect it with at {path}: {error.strerror}")
            return
        with connected:
            await _Connection(teller).run(*await _frontend_first(accepted, connected, teller))


def _who(stream: FdStream) -> str:
    pid = stream.peer_credentials().pid
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        name = "?"
    return f"process {pid} ({name})"


async def _frontend_first(
    accepted: FdStream, connected: FdStream, teller: _Teller
) -> tuple[FdStream, FdStream]:
    """Wait until one side speaks: that is the front-end. Return it and the other one."""
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
    teller.note("it is the back-end: the other side speaks first")
    return connected, accepted


class _Connection:
    """A front-end's connection to a back-end, with the back-end's channel once there is one."""

    def __init__(self, teller: _Teller) -> None:
        self._teller = teller
        self._negotiation = ObservedNegotiation()
        self._nursery: trio.Nursery | None = None

    async def run(self, frontend: FdStream, backend: FdStream) -> None:
        """Pass on what they say, until one of them leaves."""
        socket = _Socket(self._teller, Side.FRONTEND, FRONTEND_REQUESTS, self._negotiation, self._intercept)
        async with trio.open_nursery() as self._nursery:
            await Relay(frontend, backend, socket).run()
            self._nursery.cancel_scope.cancel()

    def _intercept(self, frame: Frame) -> None:
        """Put a socket of our own in the place of the one for the back-end's requests."""
        if frame.number != FrontendRequest.SET_BACKEND_REQ_FD or len(frame.fds) != 1:
            return
        try:
            backend, frontend, passed_on = _cut_in(frame.fds[0])
        except OSError as error:
            self._teller.note(f"the back-end's requests cannot be seen: {error.strerror}")
            return
        frame.fds = [passed_on]
        assert self._nursery is not None
        self._nursery.start_soon(self._run_channel, backend, frontend)

    async def _run_channel(self, backend: FdStream, frontend: FdStream) -> None:
        socket = _Socket(self._teller, Side.BACKEND, BACKEND_REQUESTS, self._negotiation)
        with backend, frontend:
            await Relay(backend, frontend, socket).run()


def _cut_in(fd: OwnedFd) -> tuple[FdStream, FdStream, OwnedFd]:
    """Return our end towards the back-end, the one towards the front-end, which was `fd`, and the back-end's.

    Raises OSError where `fd`, which is kept then, is no socket, or at the limit of open files.
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


class _Socket:
    """Follows what is said on one socket, as the witness of its relay."""

    def __init__(
        self,
        teller: _Teller,
        requester: Side,
        table: Mapping[int, type[Request]],
        negotiation: ObservedNegotiation,
        intercept: Callable[[Frame], None] = lambda _: None,
    ) -> None:
        self._teller = teller
        self._requester = requester
        self._observer = Observer(table, negotiation)
        self._intercept = intercept
        self._asked: deque[tuple[object, float]] = deque(maxlen=REMEMBERED_REQUESTS)

    @property
    def _channel(self) -> bool:
        return self._requester is Side.BACKEND

    @property
    def _name(self) -> str:
        return "channel" if self._channel else "connection"

    def _side(self, from_requester: bool) -> Side:
        if from_requester:
            return self._requester
        return Side.FRONTEND if self._requester is Side.BACKEND else Side.BACKEND

    def message(self, frame: Frame, *, from_requester: bool) -> None:
        """Decode a message and tell of it."""
        observed = self._observer.request(frame) if from_requester else self._observer.reply(frame)
        self._teller.message(
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
        """Note when a request came; return how long ago the request of a reply came."""
        now = time.monotonic()
        if observed.request is None:
            if observed.message is not None:
                self._asked.append((observed.message, now))
            return None
        return next((now - then for request, then in self._asked if request is observed.request), None)

    def raw(self, raw: Raw, *, from_requester: bool) -> None:
        """Tell of bytes that cannot be decoded."""
        sender = self._side(from_requester)
        self._teller.note(
            f"{len(raw.data)} bytes from the {sender} on the {self._name} are no message: {raw.reason}",
            raw.data,
        )

    def ended(self, reason: str, *, from_requester: bool) -> None:
        """Tell that one side has ended."""
        self._teller.note(f"{self._name} {reason} by the {self._side(from_requester)}")
