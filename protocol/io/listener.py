"""Listening UNIX sockets: bound to a path, inherited, or handed over by systemd."""

# How it works: a socket's path outlives the process that made it. Whether a process still listens there only
# a connection attempt can tell: a datagram socket is refused by a dead one, and gets EPROTOTYPE from a live
# one, which does not see it. Between this probe, the removal of a dead path and the bind, a lock on the
# directory keeps out other servers that start (flock(2), which the kernel ends with the process). A socket
# is bound, then given its mode and owner, then it listens: until the last step the kernel refuses
# connections, so that nobody connects who may not.
#
# close() removes the path only if device and inode are those that we made: another server may have replaced
# it. A crash leaves the path, which the next server finds dead and removes. Inherited sockets have no path
# of ours. The listener owns its descriptor, and each stream that accept() returns is the caller's.

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.fds import Closing, OwnedFd
from protocol.io.exhaustion import retry_until_available
from protocol.io.stream import FdStream, check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LISTEN_FDS_START = 3
"""The first descriptor that systemd hands over (sd_listen_fds(3))."""

BACKLOG = 128

LOCK_TRIES = 100
LOCK_RETRY_SECONDS = 0.01


class SocketInUseError(OSError):
    """Another process listens on the path already."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EADDRINUSE, "another server listens there", path)


class RemediedError(OSError):
    """A socket cannot be had for a reason that has a remedy of its own: `remedy`, in words for the user."""

    remedy = ""


class SocketOfAnotherError(RemediedError):
    """Another user's socket is there: one to leave alone, as it may be in use, or that we may not remove."""

    remedy = "ask its owner to remove it, or choose another path"


class SocketAccessError(RemediedError):
    """A socket cannot have the owner, the group or the mode that was asked for."""

    remedy = "run it as root, or leave out --owner and --group; a group that you are in needs no root"

    def __init__(self, error: OSError, path: str) -> None:
        super().__init__(error.errno, f"owner, group or mode cannot be set: {error.strerror}", path)


class Listener(Closing):
    """A listening socket. `close()` closes it and removes its path, if we made that and it is still ours."""

    def __init__(self, sock: socket.socket, *, made: str | None = None) -> None:
        """Take ownership of a listening socket; `made` is the path to remove in the end."""
        sock.setblocking(False)
        self._sock = sock
        self._made = made
        self._identity = _identity(made) if made else None

    @property
    def path(self) -> str:
        """The path that the socket is bound to; "" if it has none."""
        name = self._sock.getsockname()
        return name if isinstance(name, str) else "@" + os.fsdecode(name[1:])

    def fileno(self) -> int:
        """Return the descriptor, still owned by this object."""
        return self._sock.fileno()

    async def wait_readable(self) -> None:
        """Wait until a connection is there to accept (or another process was quicker).

        Raises trio.ClosedResourceError if the listener is closed before or meanwhile.
        """
        await trio.lowlevel.wait_readable(self._open_socket())

    def accept_nowait(self) -> FdStream:
        """Accept a connection; the caller closes it. Raises BlockingIOError where there is none, OSError."""
        return FdStream(self._open_socket().accept()[0])

    async def accept(self) -> FdStream:
        """Wait for a connection and accept it; the caller closes it. Raises OSError (EMFILE among others)."""
        while True:
            await self.wait_readable()
            with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                return self.accept_nowait()

    async def accept_patiently(self, complain: Callable[[str], None]) -> FdStream:
        """Accept a connection; at the limit of open files, or of memory, once that is possible again.

        Connections wait meanwhile. `complain` is called with cause and remedy when that begins. Raises
        OSError where the listener itself fails.
        """
        return await retry_until_available(self.accept, complain)

    def close(self) -> None:
        """Close the socket; remove its path unless another server has put its own there."""
        if self._sock.fileno() < 0:
            return
        if self._made and _identity(self._made) == self._identity:
            with contextlib.suppress(OSError):
                Path(self._made).unlink()
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._sock)
        self._sock.close()

    def _open_socket(self) -> socket.socket:
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError("the listener is closed")
        return self._sock


def listen(
    path: str, *, mode: int | None = None, owner: int = -1, group: int = -1, backlog: int = BACKLOG
) -> Listener:
    """Listen on `path`, replacing a socket that a dead process left there.

    `mode` (permission bits), `owner` and `group` (numbers, -1 leaves them) are in force before
    anybody can connect; without `mode` the umask decides. Raises SocketInUseError where somebody
    listens there, SocketAccessError where these cannot be set, SocketOfAnotherError where what is left
    there is not ours to replace, OSError otherwise. The caller closes the listener.
    """
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(Path(path).parent):
            _bind(sock, path)
            listener = Listener(sock, made=path)
    except BaseException:
        sock.close()
        raise
    try:
        _set_access(path, mode, owner, group)
        sock.listen(backlog)  # until then the kernel refuses connections
    except BaseException:
        listener.close()
        raise
    return listener


def inherited_listener(fd: int) -> Listener:
    """Take over `fd`, a listening UNIX stream socket that the parent process opened (`--fd`).

    Its path stays when the listener is closed. Raises ValueError where `fd` is anything else.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"descriptor {fd} is not a socket: {error.strerror}") from None
    if (
        sock.family == socket.AF_UNIX
        and sock.type == socket.SOCK_STREAM
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        os.set_inheritable(fd, False)
        return Listener(sock)
    sock.detach()
    raise ValueError(f"descriptor {fd} is not a listening UNIX stream socket")


def systemd_listener() -> Listener | None:
    """Take over the socket that systemd activated us with, or return None where it did not.

    Forgets the variables, so that no child takes it for its own. Raises ValueError for more than
    one socket, or one that is not a listening UNIX stream socket.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count or pid != str(os.getpid()):
        return None
    if count != "1":
        raise ValueError(f"systemd handed over {count} sockets; one was expected (one ListenStream=)")
    return inherited_listener(LISTEN_FDS_START)


def _set_access(path: str, mode: int | None, owner: int, group: int) -> None:
    """Raises SocketAccessError."""
    try:
        if (owner, group) != (-1, -1):
            os.chown(path, owner, group)
        if mode is not None:
            Path(path).chmod(mode)
    except OSError as error:
        raise SocketAccessError(error, path) from None


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise OSError(error.errno, error.strerror, path) from None
        _remove_stale(path)
        sock.bind(path)


def _remove_stale(path: str) -> None:
    """Remove the socket that a dead process left at `path`. Raises SocketInUseError, OSError."""
    status = Path(path).lstat()
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something that is not a socket is there", path)
    # A datagram socket cannot connect to a stream socket: the kernel says whether one is alive
    # there, and the server that owns it never sees a client come and go.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        error = probe.connect_ex(path)
    if error == errno.ECONNREFUSED:
        _unlink(path, status.st_uid)
    elif error == errno.EACCES:
        text = "a socket is there that we may not connect to"
        if status.st_uid == os.geteuid():
            raise OSError(errno.EEXIST, text, path)
        raise SocketOfAnotherError(errno.EEXIST, f"{text}, of user {status.st_uid}", path)
    else:
        raise SocketInUseError(path)


def _unlink(path: str, owner: int) -> None:
    try:
        Path(path).unlink()
    except PermissionError as error:
        if error.errno != errno.EPERM or owner == os.geteuid():
            raise
        # In a sticky directory, as /tmp.
        text = f"a socket is left there that only its owner, user {owner}, or root may remove"
        raise SocketOfAnotherError(errno.EPERM, text, path) from None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other starting servers out of the directory between the probe and the bind.

    They hold it for microseconds; where somebody holds it longer, go on without: a stranger's lock
    must not keep us from starting.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(LOCK_TRIES):
            try:
                stack.enter_context(_lock(directory))
                break
            except BlockingIOError:
                time.sleep(LOCK_RETRY_SECONDS)
        yield


def _lock(directory: Path) -> OwnedFd:
    """Lock the directory until the descriptor is closed. Raises BlockingIOError where somebody has it."""
    try:
        lock = OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:
        return _lock_by_name(directory)
    try:
        fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        lock.close()
        raise
    return lock


def _lock_by_name(directory: Path) -> OwnedFd:
    """Lock a directory that we may write to but not read: hold an abstract name that stands for it."""
    status = directory.stat()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(f"\0qemu-companion-lock-{status.st_dev}-{status.st_ino}")
        except OSError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        return OwnedFd(sock.detach())


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
