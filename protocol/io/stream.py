"""A UNIX stream socket that passes descriptors; cancellation loses none."""

# How it works: one task reads and one sends. What a cancelled receive_exactly() has read, and its
# descriptors, stays in `_received` and `_received_fds` for the next call; what a cancelled send() has not
# sent of a message whose first byte the kernel took stays in `_unsent`, and goes before anything else. So a
# message arrives whole or not at all, and no descriptor is lost or sent twice. Between a system call and the
# note of its result nothing is awaited.
#
# The kernel duplicates a descriptor that is sent: the sender closes its own at any time after. One that was
# received belongs to whoever takes it from receive(); those that nobody took are closed by close(), or by
# the kernel where the process dies, also those in messages that the other side has not read.

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import trio

from protocol.fds import Closing, OwnedFd, rights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_FDS = 253
"""Most descriptors that one message can carry (SCM_MAX_FD of Linux)."""

MAX_PATH = 107
"""Most bytes of a socket's path (unix(7), sun_path less its end)."""

RETRY_SECONDS = 0.001
"""How long to wait when too many descriptors are in flight: nothing tells when that clears."""

# Plain integers, or-ed once: to or the socket module's enums takes half a microsecond each time.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)

_INT_SIZE = array.array("i").itemsize

_SO_PEERGROUPS = 59
"""Of asm-generic/socket.h; Python has no name for it, and its getsockopt() no room for all groups."""

_libc_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt


class AncillaryLostError(OSError):
    """Descriptors were lost on the way (MSG_CTRUNC): too many came, or we are at our limit of open files."""

    def __init__(self, *, too_many: bool) -> None:
        if too_many:
            super().__init__(errno.EPROTO, "more file descriptors came than the protocol allows")
        else:
            super().__init__(
                errno.EMFILE, "file descriptors were lost on receipt; raise the limit (ulimit -n)"
            )


class Credentials(NamedTuple):
    """Who is on the other end of a socket, as the kernel noted when it connected (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class FdStream(Closing):
    """A connected UNIX stream socket, non-blocking, used by one reading and one writing task.

    `close()` closes it; whoever holds the object does so. Descriptors received are close-on-exec.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take ownership of a connected socket; it becomes non-blocking."""
        sock.setblocking(False)
        self._sock = sock
        self._received = bytearray()
        self._received_fds: list[OwnedFd] = []
        self._unsent = memoryview(b"")

    def fileno(self) -> int:
        """Return the descriptor (-1 once closed), still owned by this object."""
        return self._sock.fileno()

    def peer_credentials(self) -> Credentials:
        """Return pid, uid and gid of the other end."""
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        return Credentials(*struct.unpack("iII", raw))

    def peer_groups(self) -> tuple[int, ...]:
        """Return the supplementary groups of the other end, as the kernel noted when it connected.

        They do for a file's permissions what the group of `peer_credentials()` does. None are known where
        the kernel does not tell (before Linux 4.13).
        """
        size = ctypes.c_uint32(0)
        while True:
            groups = (ctypes.c_uint32 * (size.value // _INT_SIZE))()
            size.value = ctypes.sizeof(groups)
            where = (self._sock.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS)
            if not _libc_getsockopt(*where, groups, ctypes.byref(size)):
                return tuple(groups[: size.value // _INT_SIZE])
            if ctypes.get_errno() != errno.ERANGE:  # which came with the size that it takes
                return ()

    async def receive(self, max_bytes: int, max_fds: int = 1) -> tuple[bytes, list[OwnedFd]]:
        """Wait for one read: at least one byte, or b"" at the end of the connection.

        The caller owns the descriptors. Raises OSError; AncillaryLostError where descriptors got
        lost, be it that more than `max_fds` came, having closed the others;
        trio.ClosedResourceError if the stream is closed before or meanwhile.
        """
        while True:
            await trio.lowlevel.wait_readable(self._open_fd())
            with contextlib.suppress(BlockingIOError):
                return self.receive_nowait(max_bytes, max_fds)

    def receive_nowait(self, max_bytes: int, max_fds: int = 1) -> tuple[bytes, list[OwnedFd]]:
        """As `receive()`, but raises BlockingIOError where nothing has come."""
        self._open_fd()
        # Not CMSG_SPACE, whose padding has room for one more.
        space = socket.CMSG_LEN(max_fds * _INT_SIZE) if max_fds else 0
        data, ancillary, result, _ = self._sock.recvmsg(max_bytes, space, _RECEIVE_FLAGS)
        fds = list(_descriptors(ancillary))
        if result & socket.MSG_CTRUNC:
            for fd in fds:
                fd.close()
            raise AncillaryLostError(too_many=len(fds) == max_fds)
        return data, fds

    async def receive_exactly(self, size: int, max_fds: int = 0) -> tuple[bytes, list[OwnedFd]]:
        """Wait for exactly `size` bytes; return them with the descriptors that came on the way.

        Cancelled half-way, it loses nothing: the next call goes on where this one stopped. Returns
        fewer bytes (perhaps none) only at the end of the connection. Raises as `receive()` does.
        """
        while len(self._received) < size:
            data, fds = await self.receive(size - len(self._received), max_fds)
            self._received += data
            self._received_fds += fds
            if not data:
                break
        result = bytes(self._received[:size]), self._received_fds
        del self._received[:size]
        self._received_fds = []
        return result

    def send_nowait(self, buffers: Sequence[bytes], ancillary: Iterable[tuple[int, int, bytes]] = ()) -> int:
        """Send at once what the kernel takes; return how many bytes that was.

        Raises BlockingIOError where it takes none now, OSError (ETOOMANYREFS among them).
        """
        return self._sock.sendmsg(buffers, ancillary, _SEND_FLAGS)

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send all of `data`, with `fds` (which stay the caller's) on its first byte.

        Cancelled before its first byte was taken, it has sent nothing. Cancelled later, the rest is
        kept and goes out before anything else that is sent: the other side sees whole messages.
        Raises OSError; ValueError for `fds` without a byte to carry them.
        """
        if fds and not data:
            raise ValueError("descriptors need a byte to go with")
        await trio.lowlevel.checkpoint()
        await self.flush()
        self._unsent = memoryview(data)[await self._send_some(data, rights(*fds)) :]
        await self.flush()

    async def flush(self) -> None:
        """Send what a cancelled `send()` has left."""
        while self._unsent:
            self._unsent = self._unsent[await self._send_some(self._unsent, []) :]

    def send_eof(self) -> None:
        """Tell the other side that nothing more comes after what was sent. Raises OSError."""
        self._sock.shutdown(socket.SHUT_WR)

    async def wait_writable(self) -> None:
        """Wait until the kernel takes more."""
        await trio.lowlevel.wait_writable(self._open_fd())

    def detach(self) -> socket.socket:
        """Give the socket to the caller, who closes it; this object is closed then."""
        sock = socket.socket(fileno=self._sock.detach())
        self.close()
        return sock

    def close(self) -> None:
        """Close the socket and descriptors that were not taken; a task waiting gets ClosedResourceError."""
        for fd in self._received_fds:
            fd.close()
        self._received_fds = []
        if self._sock.fileno() >= 0 and trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def _open_fd(self) -> int:
        fd = self._sock.fileno()
        if fd < 0:
            raise trio.ClosedResourceError("the stream is closed")
        return fd

    async def _send_some(self, data: bytes | memoryview, ancillary: list[tuple[int, int, bytes]]) -> int:
        """Send at least one byte. Nothing is awaited after the kernel took bytes, so none get lost."""
        while True:
            try:
                self._open_fd()
                return self._sock.sendmsg([data], ancillary, _SEND_FLAGS)
            except BlockingIOError:
                await self.wait_writable()
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
                await trio.sleep(RETRY_SECONDS)


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> Iterable[OwnedFd]:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) // _INT_SIZE * _INT_SIZE])
            for number in numbers:
                yield OwnedFd(number)


def check_path(path: str) -> None:
    """Raise OSError, in words for the user, for what can be no socket's path."""
    if not path:  # which the kernel takes as "choose an abstract name"
        raise OSError(errno.EINVAL, "a socket needs a path", path)
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {MAX_PATH} bytes", path)


async def connect(path: str) -> FdStream:
    """Connect to the UNIX stream socket at `path`; the caller closes the stream. Raises OSError.

    A full accept queue (EAGAIN, which a UNIX socket gives instead of waiting) is waited out.
    """
    check_path(path)
    await trio.lowlevel.checkpoint()
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(path)
        except BlockingIOError:
            sock.close()
            await trio.sleep(RETRY_SECONDS)
        except BaseException:
            sock.close()
            raise
        else:
            return FdStream(sock)
