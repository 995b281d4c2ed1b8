"""Telling a service manager: a datagram socket that we bind plays its part."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints

from protocol.program import notify, watchdog
from tests.protocol.program import programs
from tests.protocol.program.child import run_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A service manager's socket, to which NOTIFY_SOCKET points."""
    path = str(directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        if request.param == "path":
            sock.bind(path)
            monkeypatch.setenv("NOTIFY_SOCKET", path)
        else:
            sock.bind("\0" + path)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + path)
        yield sock


def messages(manager: socket.socket) -> list[bytes]:
    """Return what has come and was not returned before."""
    received: list[bytes] = []
    try:
        while True:
            received.append(manager.recv(4096))
    except BlockingIOError:
        return received


def test_manager_is_told(manager: socket.socket) -> None:
    assert notify("READY=1\nSTATUS=2 peers")
    assert notify("STOPPING=1")
    assert messages(manager) == [b"READY=1\nSTATUS=2 peers", b"STOPPING=1"]


def test_there_is_no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize("path", ["", "@", "/nonexistent/notify", "/dev/null", "/" + "x" * 200])
def test_manager_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert not notify("READY=1")


def test_manager_that_has_gone(manager: socket.socket) -> None:
    manager.close()
    assert not notify("READY=1")


def test_manager_that_does_not_read(manager: socket.socket, never_blocking: None) -> None:
    told = 0
    while notify("WATCHDOG=1"):
        told += 1
    assert len(messages(manager)) == told > 0
    assert notify("STOPPING=1")


def test_neither_notify_nor_watchdog_needs_a_descriptor_left() -> None:
    """At our limit of open files the first gives up, and the second has what it needs."""
    assert run_child(programs.notify_at_the_limit) == [False, ["WATCHDOG=1", "WATCHDOG=1"]]


@pytest.fixture
def half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))


async def test_watchdog_is_fed_twice_in_an_interval(
    manager: socket.socket, half_minute: None, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(watchdog)
    await trio.sleep(1)
    assert messages(manager) == [b"WATCHDOG=1"]
    await trio.sleep(60)
    assert messages(manager) == [b"WATCHDOG=1"] * 4
    nursery.cancel_scope.cancel()


async def test_watchdog_outlives_its_manager(
    manager: socket.socket, half_minute: None, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    manager.close()
    nursery.start_soon(watchdog)
    await trio.sleep(60)
    assert len(nursery.child_tasks) == 1
    nursery.cancel_scope.cancel()


async def test_watchdog_for_the_pid_unsaid(
    manager: socket.socket,
    half_minute: None,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    monkeypatch.delenv("WATCHDOG_PID")
    nursery.start_soon(watchdog)
    await trio.sleep(1)
    assert messages(manager) == [b"WATCHDOG=1"]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WATCHDOG_USEC", None),
        ("WATCHDOG_USEC", ""),
        ("WATCHDOG_USEC", "0"),
        ("WATCHDOG_USEC", "soon"),
        ("WATCHDOG_PID", "1"),
    ],
)
async def test_no_watchdog_for_us(
    manager: socket.socket,
    half_minute: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
) -> None:
    monkeypatch.delenv(name)
    if value is not None:
        monkeypatch.setenv(name, value)
    with assert_checkpoints():
        await watchdog()
    assert messages(manager) == []
