"""Streams that pass descriptors: nothing is lost or leaked, whoever closes or is cancelled."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.io import AncillaryLostError, FdStream, connect
from protocol.io.stream import MAX_FDS
from tests.protocol.io.passing import LARGE, Pair, close_all
from tests.protocol.ivshmem.world import identity
from tests.protocol.program import programs
from tests.protocol.program.child import run_child

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


# Receiving


async def test_descriptor_passes(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    await first.send(b"12345678", [eventfd.fileno()])
    data, [received] = await second.receive(8)
    with received:
        assert data == b"12345678"
        assert identity(received) == identity(eventfd)
        assert not os.get_inheritable(received.fileno())


async def test_receive_takes_what_there_is(pair: Pair) -> None:
    first, second = pair
    await first.send(b"12345")
    assert await second.receive(8) == (b"12345", [])
    await first.send(b"12345678901")
    assert await second.receive(8) == (b"12345678", [])
    assert await second.receive(8) == (b"901", [])


async def test_receive_waits(pair: Pair, nursery: trio.Nursery) -> None:
    first, second = pair
    received: list[bytes] = []

    async def receive() -> None:
        received.append((await second.receive(8))[0])

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    assert received == []
    with pytest.raises(BlockingIOError):
        second.receive_nowait(8)
    await first.send(b"x")
    await wait_all_tasks_blocked()
    assert received == [b"x"]


async def test_end_of_the_connection_is_no_bytes(pair: Pair) -> None:
    first, second = pair
    await first.send(b"x")
    first.close()
    assert await second.receive(8) == (b"x", [])
    assert await second.receive(8) == (b"", [])


async def test_end_of_one_direction_leaves_the_other(pair: Pair) -> None:
    first, second = pair
    first.send_eof()
    assert await second.receive(8) == (b"", [])
    await second.send(b"x")
    assert await first.receive(8) == (b"x", [])


@pytest.mark.parametrize("count", [1, 2, 3, 8, MAX_FDS])
async def test_as_many_descriptors_as_allowed(pair: Pair, eventfd: OwnedFd, count: int) -> None:
    first, second = pair
    await first.send(b"x", [eventfd.fileno()] * count)
    data, fds = await second.receive(8, max_fds=count)
    assert (data, close_all(fds)) == (b"x", count)


@pytest.mark.parametrize("allowed", [0, 1, 2, 3, MAX_FDS - 1])
async def test_one_descriptor_more_than_allowed(pair: Pair, eventfd: OwnedFd, allowed: int) -> None:
    first, second = pair
    await first.send(b"x", [eventfd.fileno()] * (allowed + 1))
    with pytest.raises(
        AncillaryLostError, match="more file descriptors came than the protocol allows"
    ) as caught:
        await second.receive(8, max_fds=allowed)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("method", ["receive", "receive_exactly"])
async def test_reset_connection_is_an_error(pair: Pair, method: str) -> None:
    """The other side closed with unread data."""
    first, second = pair
    await second.send(b"x")
    first.close()
    with pytest.raises(ConnectionResetError):
        await getattr(second, method)(1)


def test_descriptors_lost_at_our_limit() -> None:
    """What did come is closed: see the program."""
    number, text, kept = run_child(programs.receive_at_the_limit)
    assert (number, kept) == (errno.EMFILE, 0)
    assert text == "file descriptors were lost on receipt; raise the limit (ulimit -n)"


# Receiving exactly


async def test_receive_exactly_joins_what_comes_in_pieces(
    pair: Pair, eventfd: OwnedFd, nursery: trio.Nursery
) -> None:
    first, second = pair

    async def send() -> None:
        for piece in (b"12", b"345", b"678", b"next"):
            await first.send(piece, [eventfd.fileno()])
            await wait_all_tasks_blocked()

    nursery.start_soon(send)
    data, fds = await second.receive_exactly(8, max_fds=1)
    assert (data, close_all(fds)) == (b"12345678", 3)
    data, fds = await second.receive_exactly(4, max_fds=1)
    assert (data, close_all(fds)) == (b"next", 1)


async def test_receive_exactly_cancelled_half_way_loses_nothing(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    await first.send(b"123", [eventfd.fileno()])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.receive_exactly, 8, 1)
            await wait_all_tasks_blocked()
            scope.cancel()
    await first.send(b"45678")
    data, fds = await second.receive_exactly(8, max_fds=1)
    assert (data, close_all(fds)) == (b"12345678", 1)


async def test_receive_exactly_at_the_end_returns_what_came(pair: Pair) -> None:
    first, second = pair
    await first.send(b"123")
    first.close()
    assert await second.receive_exactly(8) == (b"123", [])
    assert await second.receive_exactly(8) == (b"", [])


async def test_close_closes_descriptors_of_a_message_that_never_ended(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    await first.send(b"123", [eventfd.fileno()])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.receive_exactly, 8, 1)
            await wait_all_tasks_blocked()
            scope.cancel()
    second.close()  # or else the test leaves a descriptor behind


# Closing


@pytest.mark.parametrize("method", ["receive", "receive_exactly"])
async def test_close_wakes_the_receiving_task(pair: Pair, nursery: trio.Nursery, method: str) -> None:
    _, second = pair
    ended = trio.Event()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(second, method)(8)
        ended.set()

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    second.close()
    with trio.fail_after(60):
        await ended.wait()


async def test_close_wakes_the_sending_task(pair: Pair, nursery: trio.Nursery) -> None:
    first, _ = pair
    ended = trio.Event()

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await first.send(LARGE)
        ended.set()

    nursery.start_soon(send)
    await wait_all_tasks_blocked()
    first.close()
    with trio.fail_after(60):
        await ended.wait()


@pytest.mark.parametrize("attempt", range(20))
async def test_close_just_after_data_came(pair: Pair, attempt: int) -> None:
    """The receiving task has been woken, and may find the stream closed when its turn comes."""
    first, second = pair
    copy = os.dup(second.fileno())

    async def receive() -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            assert await second.receive(8) == (b"x", [])

    async def close() -> None:
        with OwnedFd(copy):
            await trio.lowlevel.wait_readable(copy)
        second.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        first.send_nowait([b"x"])


async def test_closed_stream(pair: Pair) -> None:
    first, _ = pair
    first.close()
    first.close()
    assert first.fileno() == -1
    for attempt in (first.receive(1), first.receive_exactly(1), first.send(b"x"), first.wait_writable()):
        with pytest.raises(trio.ClosedResourceError):
            await attempt
    with pytest.raises(trio.ClosedResourceError):
        first.receive_nowait(1)


def test_close_outside_of_a_loop() -> None:
    left, right = socket.socketpair()
    with right:
        stream = FdStream(left)
        stream.close()
        assert right.recv(1) == b""


# Connecting


def test_credentials_are_those_of_the_other_process(pair: Pair) -> None:
    first, _ = pair
    assert first.peer_credentials() == (os.getpid(), os.getuid(), os.getgid())


def test_groups_are_those_of_the_other_process(pair: Pair) -> None:
    assert sorted(pair[0].peer_groups()) == sorted(os.getgroups())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives itself groups")
@pytest.mark.parametrize("count", [0, 1, 17, 300, 65536])
def test_groups_are_all_that_there_are(count: int) -> None:
    assert run_child(programs.count_peer_groups, count) == count


async def test_connect(directory: Path) -> None:
    path = str(directory / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with assert_checkpoints():
            client = await connect(path)
        accepted, _ = server.accept()
        with client, FdStream(accepted) as stream:
            await stream.send(b"hello")
            assert await client.receive(8) == (b"hello", [])


async def test_connect_waits_for_room_in_the_accept_queue(
    directory: Path, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    path = str(directory / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        with await connect(path):
            connected = trio.Event()

            async def connect_too() -> None:
                with await connect(path):
                    connected.set()

            nursery.start_soon(connect_too)
            await trio.sleep(1)
            assert not connected.is_set()
            server.accept()[0].close()
            await trio.sleep(1)
            assert connected.is_set()


@pytest.mark.parametrize("name", ["missing", "missing/sock", "x" * 200])
async def test_connect_to_nobody(directory: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"No such file|at most 107 bytes"):
        await connect(str(directory / name))


async def test_connect_to_a_dead_server(directory: Path) -> None:
    path = str(directory / "sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    with pytest.raises(ConnectionRefusedError):
        await connect(path)
