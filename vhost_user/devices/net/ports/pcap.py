"""A capture of frames as pcapng: a file, or a FIFO for Wireshark or tcpdump.

The format: https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng (section header, interface
description and enhanced packet blocks). Each port is an interface, and each frame says which way it went.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import struct
import time
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from vhost_user.buffers import cut
from vhost_user.devices.net.ports.port import NetPort, Receiver, WrappedPort

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

SNAPLEN = 262144
"""How many bytes of a frame are kept, as tcpdump does; no frame of a guest's is as long."""

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_ETHERNET = 1
_END, _FLAGS, _NAME, _RESOLUTION = 0, 2, 2, 9
_NANOSECONDS = 9
_UNKNOWN_LENGTH = (1 << 64) - 1
_FIFO_POLL_SECONDS = 0.25
"""How often to look whether somebody reads a FIFO."""
_MOST_BEHIND = 1 << 20
"""How many bytes wait at most for somebody who reads a FIFO slowly; frames beyond that are left out."""

_OPTION = struct.Struct("<HH")
_PACKET_HEADER = struct.Struct("<IIIII")

_log = logging.getLogger("vhost_user.net")


class Direction(IntEnum):
    """Which way a frame went, seen from the network; the values are the format's."""

    FROM_GUEST = 1
    TO_GUEST = 2


class Capture:
    """Writes frames to a file or a FIFO. Whatever goes wrong there, the network goes on without it.

    Each frame is written at once and as a whole: the file can be read also after a crash.
    """

    def __init__(self, path: str, interfaces: Sequence[str], *, snaplen: int = SNAPLEN) -> None:
        """Begin a capture of these interfaces at `path`, which is overwritten. Raises OSError.

        A FIFO gets what comes while somebody reads it, from the next time on that a frame comes.
        """
        self._snaplen = snaplen
        header = _section() + b"".join(_interface(name, snaplen) for name in interfaces)
        self._output: _File | _Fifo | None = _Fifo(path, header) if _is_fifo(path) else _File(path, header)

    def close(self) -> None:
        """End it."""
        if self._output is not None:
            self._output.close()
            self._output = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """False once it was closed, or has failed."""
        return self._output is not None

    async def run(self) -> None:
        """Serve a FIFO, until cancelled; returns at once for a file."""
        while isinstance(self._output, _Fifo):
            self._guarded(self._output.look)
            await trio.sleep(_FIFO_POLL_SECONDS)

    def write(
        self, interface: int, direction: Direction, buffers: Sequence[bytes | memoryview], skip: int = 0
    ) -> None:
        """Write a frame: what `buffers` hold after `skip` bytes."""
        if self._output is None:
            return
        data = b"".join(buffers)
        length = len(data) - skip
        block = _packet(interface, direction, data[skip : skip + self._snaplen], length)
        self._guarded(partial(self._output.write, block))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            assert self._output is not None
            path = self._output.path
            _log.error(
                "cannot write to %s: %s; the capture ends, and the network goes on", path, error.strerror
            )
            self.close()


class _File:
    """A regular file, or a device such as a pipe's end."""

    def __init__(self, path: str, header: bytes) -> None:
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = OwnedFd(os.open(path, flags, 0o666))
        self._size = 0
        try:
            self.write(header)
        except OSError:
            self.close()
            raise

    def write(self, block: bytes) -> None:
        """Write a block as a whole, or none of it. Raises OSError."""
        fd = self._fd.fileno()
        done = 0
        try:
            while done < len(block):
                done += os.write(fd, block[done:])
        except OSError:
            with contextlib.suppress(OSError):  # not every file has a size
                os.ftruncate(fd, self._size)
            raise
        self._size += done

    def close(self) -> None:
        self._fd.close()


class _Fifo:
    """A FIFO, which gets the header whenever somebody begins to read it."""

    def __init__(self, path: str, header: bytes) -> None:
        self.path = path
        self._header = header
        self._fd: OwnedFd | None = None
        self._behind = bytearray()
        self.look()

    def write(self, block: bytes) -> None:
        """Write a whole block, or none where no one reads or the reader is far behind. Raises OSError."""
        if self._fd is not None and len(self._behind) + len(block) <= _MOST_BEHIND:
            self._behind += block
            self._flush(self._fd)

    def look(self) -> None:
        """Find out whether somebody reads it by now, and write what waits for room. Raises OSError."""
        if self._fd is None:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # no one reads it
                raise
            self._fd = OwnedFd(fd)
            self._behind += self._header
        self._flush(self._fd)

    def _flush(self, fd: OwnedFd) -> None:
        try:
            while self._behind:
                del self._behind[: os.write(fd.fileno(), self._behind)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            self._fd.close()
            self._fd = None
        self._behind.clear()


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116 -- of what open() would open
    except OSError:
        return False


def _section() -> bytes:
    body = struct.pack("<IHHQ", _BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LENGTH)
    return _block(_SECTION, body)


def _interface(name: str, snaplen: int) -> bytes:
    options = _option(_NAME, name.encode()) + _option(_RESOLUTION, bytes([_NANOSECONDS])) + _option(_END)
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snaplen) + options)


def _packet(interface: int, direction: Direction, data: bytes, length: int) -> bytes:
    now = time.time_ns()
    header = _PACKET_HEADER.pack(interface, now >> 32, now & 0xFFFFFFFF, len(data), length)
    options = _option(_FLAGS, struct.pack("<I", direction)) + _option(_END)
    return _block(_PACKET, header + _padded(data) + options)


def _option(code: int, value: bytes = b"") -> bytes:
    return _OPTION.pack(code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    """Return a block; its length stands at both ends."""
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


class CapturedPort(WrappedPort):
    """Around any port. The capture may be that of several ports, of which this is the one `interface`."""

    def __init__(self, inner: NetPort, capture: Capture, interface: int = 0) -> None:
        """Own `inner`, and the capture together with the other ports."""
        super().__init__(inner)
        self._capture = capture
        self._interface = interface
        self._to_come_again: set[int] = set()

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Write a frame before others get it, and only once when it comes again."""
        if pair not in self._to_come_again:
            self.write(Direction.FROM_GUEST, buffers, length)
        is_done = self.inner.send(pair, buffers, length)
        if is_done:
            self._to_come_again.discard(pair)
        else:
            self._to_come_again.add(pair)
        return is_done

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Write what the guest gets."""
        await self.inner.receive(pair, _CapturingReceiver(self, receiver))

    def write(self, direction: Direction, buffers: Sequence[memoryview], length: int) -> None:
        """Write a frame."""
        if self._capture.is_open:
            self._capture.write(self._interface, direction, cut(buffers, length), self.header_size)

    async def run(self) -> None:
        """Serve a capture that somebody reads meanwhile."""
        async with trio.open_nursery() as nursery:
            if self._interface == 0:
                nursery.start_soon(self._capture.run)
            await super().run()

    def close(self) -> None:
        """End the capture, and close the port within."""
        self._capture.close()
        super().close()


class _CapturingReceiver(Receiver):
    """Around the guest's receiver."""

    def __init__(self, port: CapturedPort, receiver: Receiver) -> None:
        self._port = port
        self._receiver = receiver
        self._buffers: Sequence[memoryview] = ()

    def window(self) -> Sequence[memoryview] | None:
        return self._noted(self._receiver.window())

    def room(self, size: int) -> Sequence[memoryview] | None:
        return self._noted(self._receiver.room(size))

    def fill(self, size: int) -> None:
        self._port.write(Direction.TO_GUEST, self._buffers, size)
        self._receiver.fill(size)

    def flush(self) -> None:
        self._receiver.flush()

    async def until_room(self, size: int = 1) -> bool:
        return await self._receiver.until_room(size)

    def _noted(self, buffers: Sequence[memoryview] | None) -> Sequence[memoryview] | None:
        self._buffers = buffers or ()
        return buffers
