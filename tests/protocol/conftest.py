"""Sockets and eventfds for the tests of I/O."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

import pytest

from protocol.fds import OwnedFd
from protocol.io import FdStream, Listener, listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 60
"""After how long something that must not block is taken to have blocked."""


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "sock"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    with listen(str(path)) as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[FdStream, FdStream]]:
    """Two streams that are connected to each other."""
    left, right = socket.socketpair()
    with FdStream(left) as first, FdStream(right) as second:
        yield first, second


@pytest.fixture
def eventfd() -> Iterator[OwnedFd]:
    with OwnedFd(os.eventfd(0, os.EFD_CLOEXEC)) as made:
        yield made


@pytest.fixture
def never_blocking() -> Iterator[None]:
    """Interrupt a system call that waits."""

    def fail(signum: int, frame: object) -> NoReturn:
        raise AssertionError(f"blocked for {SECONDS} s")  # no OSError, which may be expected

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
