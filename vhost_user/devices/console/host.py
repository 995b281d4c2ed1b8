"""What a console's port is on the host: a pseudo-terminal, a socket or a file.

A host side opens what may fail when it is made, and moves bytes in `run()`, which its device runs for as
long as it serves, with a guest or without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import sys
import termios
import tty
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from protocol.io import exhaustion, has_hung_up, listen, until_hung_up
from protocol.program.warnings import FailureLogger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from protocol.io import FdStream, Listener
    from vhost_user.devices.console.port import ConsolePort

TERMINAL_POLL_SECONDS = 0.1
"""How often to look at what nothing tells of: whether somebody has a pseudo-terminal open, and its size."""

_FAILURE_RETRY_SECONDS = 1.0
_CHUNK = 32768
_WINSIZE = struct.Struct("HHHH")

_log = logging.getLogger("vhost_user")


async def until_readable(fd: int) -> None:
    """Wait until `fd` can be read; a regular file always can."""
    with contextlib.suppress(PermissionError):
        await trio.lowlevel.wait_readable(fd)
        return
    await trio.lowlevel.checkpoint()


async def until_writable(fd: int) -> None:
    """Wait until `fd` can be written to; a regular file always can."""
    with contextlib.suppress(PermissionError):
        await trio.lowlevel.wait_writable(fd)
        return
    await trio.lowlevel.checkpoint()


async def read_into(port: ConsolePort, fd: int, accept: Callable[[bytes], bytes] = bytes) -> int:
    """Hand what comes from the non-blocking `fd`, as `accept` returns it, to the guest; return at its end.

    Returns the number of the error that was its end, or 0.
    """
    while True:
        await port.until_room_for_input()
        await until_readable(fd)
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            continue
        except OSError as error:
            return error.errno or 0  # EIO, ECONNRESET: whoever was there has gone
        if not data:
            return 0
        port.put_input_now(accept(data))  # all of it, as a wait could be cancelled


async def write_from(port: ConsolePort, fd: int, write: Callable[[int, bytes], int] = os.write) -> None:
    """Write to the non-blocking `fd` what comes from the guest. Raises OSError."""
    while True:
        await port.until_output()
        await until_writable(fd)
        with contextlib.suppress(BlockingIOError):
            port.taken(write(fd, port.output.peek(_CHUNK)))


async def _converse(
    port: ConsolePort, fd: int, write: Callable[[int, bytes], int] = os.write, *, half_closes: bool = False
) -> int:
    """Move bytes in both directions; return when the other end of `fd` has gone, and with what error.

    With `half_closes`, one that sends nothing more may still read (`nc -N -U`).
    """
    error = 0
    async with trio.open_nursery() as nursery:

        async def write_all() -> None:
            with contextlib.suppress(OSError):
                await write_from(port, fd, write)
            nursery.cancel_scope.cancel()

        nursery.start_soon(write_all)
        error = await read_into(port, fd)
        if half_closes and not error:
            await until_hung_up(fd)
        nursery.cancel_scope.cancel()
    return error


def window_size(fd: int) -> tuple[int, int] | None:
    """Return a terminal's columns and rows; None where it is none, or does not know."""
    try:
        rows, columns, _, _ = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size)))
    except OSError:
        return None
    return (columns, rows) if columns and rows else None


class PtyHost:
    """A pseudo-terminal. Whoever has it open is the host's end; its window size is the console's."""

    def __init__(self, link: str | None = None) -> None:
        """Make one, and the symbolic link `link` to it, which replaces a link. Raises OSError."""
        master, slave = os.openpty()
        self._master = OwnedFd(master)
        with OwnedFd(slave):
            tty.setraw(slave)
            self.path = os.ttyname(slave)
            """What to open."""
        os.set_blocking(master, False)
        self._size: tuple[int, int] | None = None
        self._link: str | None = None
        if link is not None:
            try:
                self._make_link(link)
            except OSError:
                self._master.close()
                raise

    def _make_link(self, link: str) -> None:
        if Path(link).is_symlink():
            Path(link).unlink()
        Path(link).symlink_to(self.path)
        self._link = link

    def __str__(self) -> str:
        return self.path if self._link is None else f"{self._link} ({self.path})"

    async def run(self, port: ConsolePort) -> None:
        """Serve one who opens it after the other, or several at a time, as the kernel has it."""
        fd = self._master.fileno()
        while True:
            if has_hung_up(fd):
                await trio.sleep(TERMINAL_POLL_SECONDS)
                continue
            port.host_opened()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_size, port)
                await _converse(port, fd)
                nursery.cancel_scope.cancel()
            # What the one who left had set is in force for the next one, too: with ECHO, the guest's own
            # output would come back to it as if somebody typed it.
            tty.setraw(fd, termios.TCSANOW)
            port.host_closed()

    async def _watch_size(self, port: ConsolePort) -> None:
        while True:
            size = window_size(self._master.fileno())
            if size is not None and size != self._size:
                self._size = size
                port.resize(*size)
            await trio.sleep(TERMINAL_POLL_SECONDS)

    def hang_up(self) -> bool:
        """Refuse: those who have it open cannot be made to close it."""
        return False

    def close(self) -> None:
        """Close it and remove the link, if that is still ours."""
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(OSError):
                if str(Path(link).readlink()) == self.path:
                    Path(link).unlink()
        self._master.close()


class _SocketHost:
    """A listening socket; one client at a time is the host's end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._talk: trio.CancelScope | None = None

    def __str__(self) -> str:
        return self._name

    async def run(self, port: ConsolePort) -> None:
        """Serve one client after the other; the next one waits until the one before has left."""
        while True:
            with await self._accept() as client:
                port.host_opened()
                with trio.CancelScope() as self._talk:
                    await self._converse(port, client.fileno())
                self._talk = None
            port.host_closed()

    async def _converse(self, port: ConsolePort, fd: int) -> None:
        """Move bytes until the client has gone."""
        await _converse(port, fd)

    async def _accept(self) -> FdStream | socket.socket:
        raise NotImplementedError

    def _log_accept_failure(self, reason: str) -> None:
        _log.error("%s: no client can connect now: %s; trying again", self._name, reason)

    def hang_up(self) -> bool:
        """Close the connection, if there is one."""
        if self._talk is not None:
            self._talk.cancel()
        return True


class _Sent:
    """What a client of a UNIX socket was sent, from the first byte on that it may not have read.

    The kernel tells when all was read, and in the end whether all was. How much it does not tell, so it
    is given little at a time.
    """

    def __init__(self, fd: int) -> None:
        self.unread = b""
        with _borrowed(fd) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)

    def write(self, fd: int, data: bytes) -> int:
        """Send bytes, and remember them. Raises OSError."""
        all_read = not _waiting(fd)
        count = os.write(fd, data)  # fails for one that has gone, of which nothing waits either
        self.unread = data[:count] if all_read else self.unread + data[:count]
        return count


class UnixHost(_SocketHost):
    """A UNIX socket. What a client has not read when it leaves is for the next one."""

    def __init__(self, path: str) -> None:
        """Listen at `path`. Raises SocketInUseError, OSError."""
        super().__init__(path)
        self._listener: Listener = listen(path)

    async def _converse(self, port: ConsolePort, fd: int) -> None:
        sent = _Sent(fd)
        error = await _converse(port, fd, sent.write, half_closes=True)
        if errno.ECONNRESET in {error, _pending_error(fd)}:  # which says that something was not read
            port.put_output_back(sent.unread)

    async def _accept(self) -> FdStream:
        return await self._listener.accept_patiently(self._log_accept_failure)

    def close(self) -> None:
        """Listen no longer, and remove the socket."""
        self._listener.close()


class TcpHost(_SocketHost):
    """A TCP port."""

    def __init__(self, host: str, port: int) -> None:
        """Listen at `host`:`port`; 0 is any port that is free. Raises OSError."""
        try:
            host.encode("idna")
        except UnicodeError as error:  # create_server() would not say so as an OSError
            raise OSError(errno.EINVAL, "no host can have this name") from error
        self._socket = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        """Where it listens."""
        super().__init__(f"{host}:{self.port}")
        self._failures = FailureLogger(_log)

    async def _accept(self) -> socket.socket:
        while True:
            try:
                return await exhaustion.retry_until_available(self._accept_one, self._log_accept_failure)
            except BlockingIOError:
                continue
            except OSError as error:
                self._failures.failed(  # of the network, say
                    f"{self._name}: {exhaustion.cause_and_remedy(error)}; trying again"
                )
                await trio.sleep(_FAILURE_RETRY_SECONDS)

    async def _accept_one(self) -> socket.socket:
        await trio.lowlevel.wait_readable(self._socket)
        client, _ = self._socket.accept()
        self._failures.worked()
        client.setblocking(False)
        return client

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


class FileHost:
    """A file that gets the guest's output; nothing comes from it."""

    def __init__(self, path: str) -> None:
        """Append to `path`, which is made if need be. Raises OSError."""
        self._path = path
        self._failures = FailureLogger(_log)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self._fd = OwnedFd(os.open(path, flags, 0o644))

    def __str__(self) -> str:
        return self._path

    async def run(self, port: ConsolePort) -> None:
        """Write what comes. What cannot be written waits, and is tried again."""
        port.host_opened()
        while True:
            try:
                await write_from(port, self._fd.fileno(), self._write)
            except OSError as error:
                self._failures.failed(f"{self._path}: {exhaustion.cause_and_remedy(error)}; trying again")
                await trio.sleep(_FAILURE_RETRY_SECONDS)

    def _write(self, fd: int, data: bytes) -> int:
        count = os.write(fd, data)
        self._failures.worked()
        return count

    def hang_up(self) -> bool:
        """Refuse: a file is always there."""
        return False

    def close(self) -> None:
        """Close it."""
        self._fd.close()


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _waiting(fd: int) -> int:
    """Return 0 where the other end of a UNIX socket has read all that it was sent."""
    return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _pending_error(fd: int) -> int:
    with _borrowed(fd) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
