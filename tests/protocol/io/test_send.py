"""Sending on streams: whole messages, whoever is cancelled, full or gone."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from protocol.fds import OwnedFd, rights
from tests.protocol.io.passing import LARGE, Pair, close_all, fill, receive_all
from tests.protocol.program import programs
from tests.protocol.program.child import run_child

if TYPE_CHECKING:
    from protocol.io import FdStream


async def test_send_and_receive_are_checkpoints(pair: Pair) -> None:
    first, second = pair
    with assert_checkpoints():
        await first.send(b"x")
    with assert_checkpoints():
        await second.receive(1)
    await first.send(b"x")
    with assert_checkpoints():
        await second.receive_exactly(1)


async def test_send_of_more_than_the_kernel_takes_at_once(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    received: list[tuple[bytes, int]] = []

    async def receive() -> None:
        received.append(await receive_all(second))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await first.send(LARGE, [eventfd.fileno()])
        first.close()
    assert received == [(LARGE, 1)]


async def cancel_while_blocked(stream: FdStream, data: bytes, *fds: int) -> None:
    """Send; cancel it once it waits for room."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send, data, fds)
            await wait_all_tasks_blocked()
            scope.cancel()


async def test_send_cancelled_half_way_keeps_the_framing(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    await cancel_while_blocked(first, LARGE, eventfd.fileno())
    await cancel_while_blocked(first, b"never begun")
    received: list[tuple[bytes, int]] = []

    async def receive() -> None:
        received.append(await receive_all(second))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await first.send(b"next", [eventfd.fileno()])
        first.close()
    assert received == [(LARGE + b"next", 2)]


async def test_flush_sends_what_a_cancelled_send_left(pair: Pair) -> None:
    first, second = pair
    await cancel_while_blocked(first, LARGE)
    received: list[tuple[bytes, int]] = []

    async def receive() -> None:
        received.append(await receive_all(second))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await first.flush()
        first.close()
    assert received == [(LARGE, 0)]


async def test_send_cancelled_before_its_first_byte_sends_nothing(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    count = fill(first)
    await cancel_while_blocked(first, b"never begun", eventfd.fileno())
    assert (await second.receive_exactly(count))[0] == bytes(count)
    await first.send(b"next")
    first.close()
    assert await receive_all(second) == (b"next", 0)


async def test_send_in_a_cancelled_scope_sends_nothing(pair: Pair) -> None:
    first, second = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        await first.send(b"x")
    first.close()
    assert await receive_all(second) == (b"", 0)


async def test_wait_writable_ends_when_the_other_side_reads(pair: Pair, nursery: trio.Nursery) -> None:
    first, second = pair
    fill(first)
    writable = trio.Event()

    async def wait() -> None:
        await first.wait_writable()
        writable.set()

    nursery.start_soon(wait)
    await wait_all_tasks_blocked()
    assert not writable.is_set()
    first.send_eof()
    await receive_all(second)
    with trio.fail_after(60):
        await writable.wait()


async def test_send_nowait_sends_the_buffers_as_one_message(pair: Pair, eventfd: OwnedFd) -> None:
    first, second = pair
    assert first.send_nowait([b"1234", b"5678"], rights(eventfd.fileno())) == 8
    data, fds = await second.receive(16)
    assert (data, close_all(fds)) == (b"12345678", 1)


async def test_descriptors_need_a_byte(pair: Pair, eventfd: OwnedFd) -> None:
    first, _ = pair
    with pytest.raises(ValueError, match="descriptors need a byte to go with"):
        await first.send(b"", [eventfd.fileno()])


async def test_send_to_one_who_has_gone(pair: Pair) -> None:
    first, second = pair
    second.close()
    with pytest.raises(BrokenPipeError):
        await first.send(b"x")
    with pytest.raises(BrokenPipeError):
        first.send_nowait([b"x"])


def test_send_to_one_who_has_gone_gives_no_signal() -> None:
    """Which Python ignores, but not every program that it is embedded in."""
    assert run_child(programs.send_to_one_who_has_gone) == [errno.EPIPE, errno.EPIPE]


def test_too_many_descriptors_in_flight_are_waited_out() -> None:
    """The limit holds for an unprivileged user only: see the program."""
    assert run_child(programs.send_more_than_may_be_in_flight) == [errno.ETOOMANYREFS, 200]
