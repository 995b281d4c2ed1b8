"""What tests have done by a process of its own: at limits, without privileges, or to be killed.

`run_child()` runs these functions, each in a new process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import rights
from protocol.io import AncillaryLostError, FdStream, RemediedError, listen, systemd_listener
from protocol.io.listener import LISTEN_FDS_START
from protocol.program import logs, notify, watchdog
from protocol.program.command_line import raise_open_files_limit
from tests.protocol.program.child import READY

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534

_TIMEOUT_SECONDS = 60


# Streams


def receive_at_the_limit() -> tuple[int | None, str | None, int]:
    """Receive three descriptors with room for one; return the error and how many were kept open."""
    left, right = socket.socketpair()
    with FdStream(left) as first, FdStream(right) as second:
        first.send_nowait([b"x"], rights(0, 0, 0))
        before = _count_descriptors()
        lowest_free = os.dup(0)
        os.close(lowest_free)
        limit = _limit_descriptors(lowest_free + 1)
        try:
            second.receive_nowait(8, max_fds=3)
        except AncillaryLostError as error:
            _limit_descriptors(limit)
            return error.errno, error.strerror, _count_descriptors() - before
    raise AssertionError("all three came")


def send_more_than_may_be_in_flight() -> tuple[int | None, int]:
    """Send until the kernel has enough, then 200 times more; return the error and how many of those came."""
    trio.run(trio.sleep, 0)  # what it imports, it imports while it may
    drop_privileges()
    _limit_descriptors(32)
    left, right = socket.socketpair()
    with FdStream(left) as first, FdStream(right) as second:
        sent, error = _send_until_refused(first)
        received = trio.run(_send_and_receive, first, second, sent + 200)
    return error, received - sent


def send_to_one_who_has_gone() -> list[int | None]:
    """Send where SIGPIPE kills; return the errors of both ways to send."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    left, right = socket.socketpair()
    right.close()
    with FdStream(left) as stream:
        return [_error_of(stream.send_nowait, [b"x"]), _error_of(trio.run, stream.send, b"x")]


def _error_of(call: Callable[..., object], *arguments: object) -> int | None:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


# Readiness


def notify_at_the_limit() -> tuple[bool, list[str]]:
    """Notify, and feed the watchdog twice, without a free descriptor; return what came of both."""
    name = f"notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        os.environ |= {"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "20000"}
        told, fed = trio.run(_watch_at_the_limit, manager)
    return told, [message.decode() for message in fed]


async def _watch_at_the_limit(manager: socket.socket) -> tuple[bool, list[bytes]]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog)
        await wait_all_tasks_blocked()
        _limit_descriptors(0)
        told = notify("STOPPING=1")
        with trio.fail_after(_TIMEOUT_SECONDS):
            await trio.lowlevel.wait_readable(manager)
            fed = [manager.recv(100)]
            await trio.lowlevel.wait_readable(manager)
            fed.append(manager.recv(100))
        nursery.cancel_scope.cancel()
    return told, fed


# Listeners


def listen_until_killed(path: str) -> None:
    with listen(path):
        sys.stdout.buffer.write(READY)
        sys.stdout.flush()
        signal.pause()


def listen_as_nobody(path: str, owner: int = -1) -> tuple[int | None, str]:
    """Return the error of an attempt to listen, with its remedy if it has one of its own."""
    drop_privileges()
    try:
        listen(path, owner=owner).close()
    except RemediedError as error:
        return error.errno, f"{error}; {error.remedy}"
    except OSError as error:
        return error.errno, str(error)
    raise AssertionError("nobody may listen there")


def accept_at_the_limit(path: str) -> tuple[int | None, bool]:
    """Return the error of an accept without a free descriptor, and whether one works afterwards."""
    with listen(path) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        limit = _limit_descriptors(0)
        try:
            listener.accept_nowait().close()
        except OSError as error:
            number = error.errno
        else:
            raise AssertionError("it was accepted")
        _limit_descriptors(limit)
        listener.accept_nowait().close()
    return number, True


def activate(path: str, environment: dict[str, str]) -> str | None:
    """Start as systemd starts a service; return the path of the listener, or the error.

    Descriptor 3 is a socket that listens at `path`, or one that listens nowhere if that is "".
    """
    environment = {name: value.replace("own", str(os.getpid())) for name, value in environment.items()}
    with socket.socket(socket.AF_UNIX) as sock:
        if path:
            sock.bind(path)
            sock.listen()
        number = sock.detach()
    if number != LISTEN_FDS_START:
        os.dup2(number, LISTEN_FDS_START)
        os.close(number)
    os.environ |= environment | {"LISTEN_FDNAMES": "name"}
    try:
        listener = systemd_listener()
    except ValueError as error:
        return str(error)
    finally:
        assert not [name for name in os.environ if name.startswith("LISTEN_")]
    if listener is None:
        return None
    with listener:
        assert not os.get_inheritable(listener.fileno())
        return listener.path


# Programs


def raise_limit() -> tuple[int, int]:
    """Return the limits of open files after raising a low one."""
    _limit_descriptors(64)
    raise_open_files_limit()
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def write_log_that_fails(path: str, message: str) -> list[str]:
    """Log a message, with one argument too many perhaps, several times; return what is said of that."""
    logs.configure("program", path=path)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        for _ in range(3):
            logging.getLogger("some.name").info(message, *["no number"] * ("%" in message))
    return told.getvalue().splitlines()


def write_log_twice(path: str, moved: str, blocked: bool = False) -> None:
    """Log, move the file away, open it again, and log once more; `blocked`: where a directory is now."""
    logs.configure("program", path=path)
    log = logging.getLogger("some.name")
    log.info("first")
    Path(path).rename(moved)
    if blocked:
        Path(path).mkdir()
    logs.reopen()
    log.info("second")
    logging.shutdown()


def log_to_standard_error(journal: bool) -> str:
    """Return what is logged to standard error, which is a file, or what systemd calls its journal."""
    with tempfile.TemporaryFile("w+") as file, contextlib.redirect_stderr(file):
        if journal:
            status = os.fstat(file.fileno())
            os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        logs.configure("program")
        logging.getLogger("some.name").info("hello")
        file.seek(0)
        return file.read()


def write_log(path: str, style: str, verbose: bool) -> None:
    """Log one record of each kind to the file."""
    logs.configure("program", style=style, verbose=verbose, path=path)
    log = logging.getLogger("some.name")
    log.info("%d peers", 2)
    log.warning("peer %d has gone", 3, extra={"peer": 3, "path": Path("/some/path")})
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        log.exception("it failed")
    log.debug("detail")
    logging.shutdown()


def fail_to_log(path: str) -> str:
    """Return what file the error names."""
    try:
        logs.configure("program", path=path)
    except OSError as error:
        return str(error.filename)
    raise AssertionError("it is a directory")


# What they have in common


def drop_privileges() -> None:
    """Become the user that owns nothing, if we are root. Modules must have been imported by then."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _send_until_refused(stream: FdStream) -> tuple[int, int | None]:
    sent = 0
    while True:
        try:
            stream.send_nowait([b"12345678"], rights(0))
        except OSError as error:
            return sent, error.errno
        sent += 1


async def _send_and_receive(first: FdStream, second: FdStream, expected: int) -> int:
    received = 0

    async def send() -> None:
        for _ in range(200):
            await first.send(b"12345678", [0])

    with trio.fail_after(_TIMEOUT_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            while received < expected:
                _, fds = await second.receive(8)
                for fd in fds:
                    fd.close()
                received += len(fds)
    return received


def _count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _limit_descriptors(count: int) -> int:
    """Set the soft limit; return what it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return soft


def count_peer_groups(count: int) -> int:
    """Be in `count` groups; return in how many the other end of a socket finds us."""
    os.setgroups(range(count))
    ours, theirs = socket.socketpair()
    with FdStream(ours) as stream, theirs:
        groups = stream.peer_groups()
    assert list(groups) == list(range(count))
    return len(groups)
