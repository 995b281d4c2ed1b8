"""The relay of two sockets: messages and files go to a listener, then on.

How it works: one task a direction reads a message, shows it to the listener and sends it on; the message
owns its descriptors for that time, and they are closed when it was sent. One side's end is passed on as
the end of that direction only: the other direction goes on, so that replies under way still arrive. A
side that is gone ends both.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import trio

from protocol.errors import RemoteProtocolError
from protocol.io import has_hung_up, until_hung_up
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import Frame, Framer

if TYPE_CHECKING:
    from protocol.fds import OwnedFd
    from protocol.io import FdStream

RAW_BYTES = 65536
"""Most bytes that are read at once after framing is lost."""

_LATE = "file descriptors came after the first byte"


@dataclass
class Raw:
    """Bytes that are not a message, as they came, and the reason. It owns `fds`."""

    data: bytes
    fds: list[OwnedFd]
    reason: str

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            fd.close()


class MessageReader:
    """Reads messages from a stream; where framing is lost, the bytes from there on as they come."""

    def __init__(self, stream: FdStream) -> None:
        """Read from `stream`, which stays the caller's."""
        self._stream = stream
        self._framer = Framer()
        self._data = b""
        self._fds: list[OwnedFd] = []
        self._lost = ""

    async def receive(self) -> Frame | Raw | None:
        """Return the next message or bytes, for the caller to close; None at the end. Raises OSError."""
        while True:
            wanted = RAW_BYTES if self._lost else self._framer.bytes_wanted
            data, fds = await self._stream.receive(wanted, MAX_FDS)
            late = bool(fds and self._data)
            self._data += data
            self._fds += fds
            frame = self._feed(data)
            if frame is not None:
                frame.fds, frame.fault = self._take_fds(), _LATE if late else ""
                return frame
            if self._lost and self._data:
                raw, self._data = self._data, b""
                return Raw(raw, self._take_fds(), self._lost)
            if not data:
                return None

    def _feed(self, data: bytes) -> Frame | None:
        if self._lost:
            return None
        try:
            frame = self._framer.feed(data)
        except RemoteProtocolError as error:
            self._lost = str(error)
            return None
        if frame is not None:
            self._data = b""
        return frame

    def _take_fds(self) -> list[OwnedFd]:
        fds, self._fds = self._fds, []
        return fds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptors of a message under way."""
        for fd in self._take_fds():
            fd.close()


class RelayListener(Protocol):
    """Gets everything before it is passed on; may put other descriptors into a frame."""

    def message(self, frame: Frame, *, from_requester: bool) -> None:
        """Called before a message is passed on."""

    def raw(self, raw: Raw, *, from_requester: bool) -> None:
        """Called before bytes are passed on that are not a message."""

    def ended(self, reason: str, *, from_requester: bool) -> None:
        """Called when no more comes from that side; `reason` is "closed", "half-closed" or "broken (...)"."""


class Relay:
    """Passes everything between two sockets, until both have ended or one is gone."""

    def __init__(self, requester: FdStream, responder: FdStream, listener: RelayListener) -> None:
        """Relay between `requester` and `responder`, which stay the caller's."""
        self._requester = requester
        self._responder = responder
        self._listener = listener

    async def run(self) -> None:
        """Pass everything on; return when both sides have ended or one is gone."""
        async with trio.open_nursery() as nursery:
            for from_requester in (True, False):
                nursery.start_soon(self._pass_on, from_requester, nursery.cancel_scope)

    async def _pass_on(self, from_requester: bool, scope: trio.CancelScope) -> None:
        source, target = self._requester, self._responder
        if not from_requester:
            source, target = target, source
        with MessageReader(source) as reader:
            while item := await self._receive(reader, from_requester, scope):
                with contextlib.closing(item):
                    self._show(item, from_requester)
                    if not await _was_sent(item, target):
                        # What the target sent before is still passed on, by the other task.
                        _shut(source, socket.SHUT_RD)
                        return
        _shut(target, socket.SHUT_WR)
        await until_hung_up(source.fileno())
        scope.cancel()

    async def _receive(
        self, reader: MessageReader, from_requester: bool, scope: trio.CancelScope
    ) -> Frame | Raw | None:
        try:
            item = await reader.receive()
        except OSError as error:
            self._listener.ended(f"broken ({error.strerror})", from_requester=from_requester)
            scope.cancel()
            return None
        if item is None:
            source = self._requester if from_requester else self._responder
            gone = has_hung_up(source.fileno())
            self._listener.ended("closed" if gone else "half-closed", from_requester=from_requester)
        return item

    def _show(self, item: Frame | Raw, from_requester: bool) -> None:
        if isinstance(item, Frame):
            self._listener.message(item, from_requester=from_requester)
        else:
            self._listener.raw(item, from_requester=from_requester)


async def _was_sent(item: Frame | Raw, target: FdStream) -> bool:
    try:
        await target.send(item.data, [fd.fileno() for fd in item.fds])
    except OSError:
        return False
    return True


def _shut(stream: FdStream, how: int) -> None:
    """Shut one direction of a socket down; nothing happens if its other end is gone."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=stream.fileno())
    try:
        with contextlib.suppress(OSError):
            sock.shutdown(how)
    finally:
        sock.detach()
