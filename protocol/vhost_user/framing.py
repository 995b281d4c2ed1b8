"""Framing: a header of 12 bytes, a payload, descriptors on the first byte.

QEMU docs/interop/vhost-user.rst, "Header". Numbers are in the machine's byte order.

How it works: a framer is a state machine of two states, header and payload, with `bytes_wanted` bytes
missing to the end of either. The kernel attaches the descriptors of a sendmsg() to its first byte, and
the read of that byte returns them. A read of at most `bytes_wanted` never crosses the end of a message, so
the descriptors that it returns belong to the message under way. Descriptors that come with a later byte
belong to that message, too, and are its fault. The framer owns them until the `Frame` is complete, and the
frame owns them then. After an error framing is lost: the framer holds nothing, and its owner must end the
connection.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.vhost_user.payload import MAX_PAYLOAD
from protocol.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.fds import OwnedFd

HEADER_SIZE = 12
"""Bytes of a message before its payload."""

VERSION = 0x1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

REPLY_FLAGS = VERSION | REPLY
"""The flags of every reply, exactly."""

_HEADER = struct.Struct("=III")


class Packet(NamedTuple):
    """Bytes and descriptors for one sendmsg(): `await stream.send(*packet)`. The fds stay their owner's."""

    data: bytes
    fds: tuple[int, ...] = ()


@dataclass
class Frame:
    """A message as it came: not decoded, not checked. It owns `fds`."""

    number: int
    flags: int
    payload: bytes
    fds: list[OwnedFd] = field(default_factory=list)
    fault: str = ""
    """What is wrong with the way it came; empty if nothing is."""

    @property
    def need_reply(self) -> bool:
        """True if the sender asks for a reply."""
        return bool(self.flags & NEED_REPLY)

    @property
    def is_reply(self) -> bool:
        """True if the sender says that it is a reply."""
        return bool(self.flags & REPLY)

    @property
    def data(self) -> bytes:
        """The bytes, as they came."""
        return pack(self.number, self.flags, self.payload)

    def take_fds(self) -> tuple[OwnedFd, ...]:
        """Return the descriptors, which are the caller's to close from now on."""
        fds, self.fds = tuple(self.fds), []
        return fds

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        for fd in self.take_fds():
            fd.close()


def pack(number: int, flags: int, payload: bytes) -> bytes:
    """Return the bytes of a message."""
    return _HEADER.pack(number, flags, len(payload)) + payload


class Framer:
    """Assembles messages from reads of at most `bytes_wanted` bytes."""

    def __init__(self) -> None:
        self._buffer = b""
        self._end = HEADER_SIZE
        self._fds: list[OwnedFd] = []
        self._fault = ""

    @property
    def bytes_wanted(self) -> int:
        """Bytes missing to the end of the header or payload under way, at least 1."""
        return self._end - len(self._buffer)

    def feed(self, data: bytes, fds: Sequence[OwnedFd] = ()) -> Frame | None:
        """Take the result of one read; return the message if it is complete.

        The framer owns `fds` from here on, and closes all that it holds before it raises. Empty `data`
        is the end of the connection. Raises RemoteProtocolError if framing is lost: a wrong version, too
        large a size, an end inside a message. Raises LocalProtocolError for more bytes than were wanted.
        """
        if fds and self._buffer:
            self._fault = "file descriptors came after the first byte"
        self._fds += fds
        try:
            return self._feed(data)
        except ProtocolError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors of a message under way, and forget it."""
        for fd in self._fds:
            fd.close()
        self._begin()

    def _begin(self) -> None:
        self._buffer, self._end, self._fds, self._fault = b"", HEADER_SIZE, [], ""

    def _feed(self, data: bytes) -> Frame | None:
        missing = self._end - len(self._buffer) - len(data)
        if missing < 0:
            raise LocalProtocolError(f"{len(data)} bytes were read where {self.bytes_wanted} were wanted")
        if not data:
            self._check_end()
            return None
        self._buffer += data
        if not missing and self._end == HEADER_SIZE:
            missing = self._payload_size()
            self._end += missing
        return None if missing else self._take()

    def _check_end(self) -> None:
        if self._buffer or self._fds:
            raise RemoteProtocolError(
                f"the connection ended after {plural(len(self._buffer), 'byte')} of a message"
            )

    def _payload_size(self) -> int:
        number, flags, size = _HEADER.unpack(self._buffer)
        if flags & VERSION_MASK != VERSION:
            raise RemoteProtocolError(
                f"this is not vhost-user version 1: request {number}, flags {flags:#x}, {size} bytes follow"
            )
        if size > MAX_PAYLOAD:
            raise RemoteProtocolError(
                f"request {number} has {plural(size, 'byte')} of payload; {MAX_PAYLOAD} are the limit"
            )
        return int(size)

    def _take(self) -> Frame:
        number, flags, _ = _HEADER.unpack_from(self._buffer)
        frame = Frame(number, flags, self._buffer[HEADER_SIZE:], self._fds, self._fault)
        self._begin()
        return frame
