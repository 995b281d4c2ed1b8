"""Accepting connections, also on listening sockets that a parent or systemd hands over."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.io import FdStream, Listener, connect, inherited_listener
from tests.protocol.io.serving import assert_serves, is_socket
from tests.protocol.program import programs
from tests.protocol.program.child import run_child

if TYPE_CHECKING:
    from collections.abc import Callable


# Accepting


async def test_accept_waits(listener: Listener, path: Path, nursery: trio.Nursery) -> None:
    accepted: list[FdStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    assert accepted == []
    with await connect(str(path)):
        await wait_all_tasks_blocked()
        [stream] = accepted
        stream.close()


async def test_accepted_socket_is_not_inherited(listener: Listener, path: Path) -> None:
    with await connect(str(path)), await listener.accept() as stream:
        assert not os.get_inheritable(stream.fileno())


@pytest.mark.parametrize("attempt", range(20))
async def test_accept_goes_on_where_another_process_was_quicker(
    listener: Listener, path: Path, attempt: int
) -> None:
    """It shares the listening socket, as with socket activation. Two connections, one for each."""
    both = trio.Event()
    accepted: list[str] = []

    async def accept(who: Listener, name: str) -> None:
        (await who.accept()).close()
        accepted.append(name)
        if len(accepted) == 2:
            both.set()

    with inherited_listener(os.dup(listener.fileno())) as other, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, listener, "one")
            nursery.start_soon(accept, other, "other")
            await wait_all_tasks_blocked()
            with await connect(str(path)):
                await wait_all_tasks_blocked()
                assert len(accepted) == 1
            with await connect(str(path)):
                await both.wait()
    assert sorted(accepted) == ["one", "other"]


def test_accept_at_the_limit_of_open_files(path: Path) -> None:
    """It raises; the connection waits, and is accepted later."""
    assert run_child(programs.accept_at_the_limit, str(path)) == [errno.EMFILE, True]


async def test_close_wakes_the_accepting_task(listener: Listener, nursery: trio.Nursery) -> None:
    ended = trio.Event()

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        ended.set()

    nursery.start_soon(accept)
    await wait_all_tasks_blocked()
    listener.close()
    with trio.fail_after(60):
        await ended.wait()


async def test_closed_listener(listener: Listener) -> None:
    listener.close()
    for attempt in (listener.accept(), listener.wait_readable()):
        with pytest.raises(trio.ClosedResourceError):
            await attempt
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_nowait()


# Inherited


async def test_inherited_listener_serves_and_leaves_its_path(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        os.set_inheritable(sock.fileno(), True)
        with inherited_listener(sock.detach()) as listener:
            assert listener.path == str(path)
            assert not os.get_inheritable(listener.fileno())
            await assert_serves(listener, path)
    assert is_socket(path)


def test_inherited_listener_without_a_path() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # the kernel finds a name that nobody has
        sock.listen()
        name = sock.getsockname().decode()
        with inherited_listener(sock.detach()) as listener:
            assert listener.path == name.replace("\0", "@")


def not_listening(_: Path) -> socket.socket:
    return socket.socket(socket.AF_UNIX)


def datagram(_: Path) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def sequential(directory: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(directory / "sock"))
    sock.listen()
    return sock


def internet(_: Path) -> socket.socket:
    sock = socket.socket(socket.AF_INET)
    sock.listen()
    return sock


@pytest.mark.parametrize("make", [not_listening, datagram, sequential, internet])
def test_other_socket_is_refused_and_stays_its_owners(
    make: Callable[[Path], socket.socket], directory: Path
) -> None:
    with make(directory) as sock:
        with pytest.raises(
            ValueError, match=f"descriptor {sock.fileno()} is not a listening UNIX stream socket"
        ):
            inherited_listener(sock.fileno())
        os.fstat(sock.fileno())


def test_descriptor_that_is_no_socket_is_refused_and_stays_its_owners() -> None:
    with Path("/dev/null").open() as file:
        with pytest.raises(ValueError, match=f"descriptor {file.fileno()} is not a socket"):
            inherited_listener(file.fileno())
        os.fstat(file.fileno())


@pytest.mark.parametrize("number", [-1, 10**6])
def test_number_that_is_no_descriptor(number: int) -> None:
    with pytest.raises(ValueError, match="descriptor"):
        inherited_listener(number)


# Activated by systemd


def test_systemd_hands_over_a_listener(path: Path) -> None:
    assert run_child(programs.activate, str(path), {"LISTEN_FDS": "1", "LISTEN_PID": "own"}) == str(path)


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "own"}],
)
def test_systemd_hands_over_nothing_to_us(path: Path, environment: dict[str, str]) -> None:
    assert run_child(programs.activate, str(path), environment) is None


def test_systemd_hands_over_too_much(path: Path) -> None:
    text = run_child(programs.activate, str(path), {"LISTEN_FDS": "2", "LISTEN_PID": "own"})
    assert text == "systemd handed over 2 sockets; one was expected (one ListenStream=)"


def test_systemd_hands_over_something_else() -> None:
    text = run_child(programs.activate, "", {"LISTEN_FDS": "1", "LISTEN_PID": "own"})
    assert text == "descriptor 3 is not a listening UNIX stream socket"
