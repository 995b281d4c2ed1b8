"""Servers that start at once on the same path, each a process; run by `run_child`."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from protocol.io import FdStream, SocketInUseError, listen
from tests.protocol.program.programs import drop_privileges

if TYPE_CHECKING:
    from collections.abc import Callable

Outcome = tuple[list[str], int]
"""Of each server that listens whether clients reach it, and how many servers found the path in use."""

_REPORT_SIZE = 8

_REMOVAL_SECONDS = 0.02
_TRIES = 6000


_unlink = Path.unlink


def _unlink_slowly(path: Path, missing_ok: bool = False) -> None:
    time.sleep(_REMOVAL_SECONDS)
    _unlink(path, missing_ok)


class _Barrier:
    """Holds processes back until all that were forked since have arrived, and the parent opens it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def wait(self) -> None:
        """Wait, in a child: for the end of a pipe that every process must have closed."""
        os.close(self._writer)
        os.read(self._reader, 1)

    def open(self) -> None:
        """Let the children go, in the parent."""
        os.close(self._writer)

    def close(self) -> None:
        """Release it in the parent, once it is open."""
        os.close(self._reader)


def start_many_as_nobody(path: str, count: int, rounds: int) -> list[Outcome]:
    drop_privileges()
    return start_many(path, count, rounds)


def start_many(path: str, count: int, rounds: int) -> list[Outcome]:
    """Have `count` processes listen at once, and die without cleaning up; do so `rounds` times.

    Each is slow to remove what it has found to be stale: time enough for the others to find it too.
    None gives up waiting for the others, however busy the machine is.
    """
    patient = mock.patch("protocol.io.listener.LOCK_TRIES", _TRIES)
    with patient, mock.patch.object(Path, "unlink", _unlink_slowly):
        return [_start_at_once(path, count) for _ in range(rounds)]


def _start_at_once(path: str, count: int) -> Outcome:
    start, over = _Barrier(), _Barrier()
    report, reporter = os.pipe()
    pids = [_fork(lambda: _serve(path, start, over, reporter)) for _ in range(count)]
    start.open()
    reports = [os.read(report, _REPORT_SIZE).decode().strip() for _ in pids]
    reached = _whom_clients_reach(path)
    over.open()
    for pid in pids:
        os.waitpid(pid, 0)
    for end in (start, over):
        end.close()
    os.close(report)
    os.close(reporter)
    listening = [int(each) for each in reports if each.isdecimal()]
    return ["reached" if pid == reached else "not reached" for pid in listening], reports.count("in use")


def _fork(run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)  # as if killed
    return pid


def _serve(path: str, start: _Barrier, over: _Barrier, reporter: int) -> None:
    start.wait()
    listener = None
    try:
        listener = listen(path)
        report = str(os.getpid())
    except SocketInUseError:
        report = "in use"
    except OSError as error:
        report = f"error {error.errno}"
    os.write(reporter, f"{report:{_REPORT_SIZE}}".encode()[:_REPORT_SIZE])
    over.wait()
    assert listener is None or listener.fileno() >= 0  # it lived until here


def _whom_clients_reach(path: str) -> int:
    """Return the pid of the process that listens at the path."""
    sock = socket.socket(socket.AF_UNIX)
    with FdStream(sock) as client:
        sock.connect(path)
        return client.peer_credentials().pid
