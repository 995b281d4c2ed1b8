"""Eventfds shared with processes that do to their flags and counters what they like."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from protocol.io import EventFd
from protocol.io.eventfd import drain

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = 2**64 - 2
"""The highest count that a write can reach (eventfd(2))."""


@pytest.fixture
def eventfd() -> Iterator[EventFd]:
    with EventFd.create() as made:
        yield made


def add(eventfd: EventFd, count: int) -> None:
    os.write(eventfd.fileno(), count.to_bytes(8, sys.byteorder))


def make_blocking(eventfd: EventFd) -> None:
    """Clear O_NONBLOCK as another process does: through its own descriptor of the same open file."""
    with eventfd.dup() as other:
        flags = fcntl.fcntl(other.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(other.fileno(), fcntl.F_SETFL, flags & ~os.O_NONBLOCK)


@pytest.fixture(params=["non-blocking", "made blocking by another process"])
def either(request: pytest.FixtureRequest, eventfd: EventFd, never_blocking: None) -> EventFd:
    if request.param != "non-blocking":
        make_blocking(eventfd)
    return eventfd


# Without waiting


def test_signals_coalesce(either: EventFd) -> None:
    for _ in range(3):
        either.signal()
    assert either.take() == 3
    assert either.take() == 0


def test_nothing_to_take(either: EventFd) -> None:
    assert either.take() == 0


def test_signal_to_a_full_counter_is_one_the_reader_has_anyway(either: EventFd) -> None:
    add(either, FULL)
    either.signal()
    assert either.take() == FULL
    either.signal()
    assert either.take() == 1


def test_signal_fills_the_counter_to_its_end(either: EventFd) -> None:
    add(either, FULL - 1)
    either.signal()
    either.signal()
    assert either.take() == FULL


def test_another_process_fills_the_counter_just_before_our_write(eventfd: EventFd) -> None:
    class Racing:
        def poll(self, timeout: int) -> list[tuple[int, int]]:
            assert timeout == 0
            add(eventfd, FULL)
            return [(eventfd.fileno(), select.POLLOUT)]

    eventfd._poll = Racing()  # type: ignore[assignment]
    eventfd.signal()
    assert eventfd.take() == FULL


def test_drain_takes_from_any_eventfd(either: EventFd) -> None:
    either.signal()
    assert drain(either.fileno()) == 1
    assert drain(either.fileno()) == 0


def test_new_eventfd_is_not_inherited(eventfd: EventFd) -> None:
    assert not os.get_inheritable(eventfd.fileno())


@pytest.mark.parametrize("method", ["signal", "take"])
def test_closed_eventfd_has_nothing_to_signal_or_take(eventfd: EventFd, method: str) -> None:
    """Not even where it has signalled before, and another descriptor has got its number."""
    eventfd.signal()
    eventfd.close()
    with EventFd.create() as successor:
        add(successor, FULL)
        with pytest.raises(ValueError, match="closed or was detached"):
            getattr(eventfd, method)()
        assert successor.take() == FULL


# Waiting


async def test_wait_returns_what_came_before(either: EventFd) -> None:
    either.signal()
    either.signal()
    with assert_checkpoints():
        assert await either.wait() == 2
    assert either.take() == 0


async def test_wait_is_woken_by_another_holder(either: EventFd, nursery: trio.Nursery) -> None:
    counts: list[int] = []

    async def reader() -> None:
        counts.append(await either.wait())

    nursery.start_soon(reader)
    await wait_all_tasks_blocked()
    with either.dup() as other:
        os.write(other.fileno(), (5).to_bytes(8, sys.byteorder))
    await wait_all_tasks_blocked()
    assert counts == [5]


async def test_wait_goes_on_where_another_reader_was_quicker(eventfd: EventFd, nursery: trio.Nursery) -> None:
    counts: list[int] = []

    async def reader() -> None:
        counts.append(await eventfd.wait())

    nursery.start_soon(reader)
    await wait_all_tasks_blocked()
    eventfd.signal()
    assert eventfd.take() == 1
    await wait_all_tasks_blocked()
    assert counts == []
    eventfd.signal()
    await wait_all_tasks_blocked()
    assert counts == [1]


async def test_cancelled_wait_takes_nothing(eventfd: EventFd) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(eventfd.wait)
            await wait_all_tasks_blocked()
            eventfd.signal()
            scope.cancel()
    assert await eventfd.wait() == 1


async def test_wait_in_a_cancelled_scope_takes_nothing(eventfd: EventFd) -> None:
    eventfd.signal()
    with trio.CancelScope() as scope:
        scope.cancel()
        await eventfd.wait()
    assert scope.cancelled_caught
    assert eventfd.take() == 1


@pytest.mark.parametrize("attempt", range(20))
async def test_signal_is_taken_or_left_when_a_cancel_comes_along(eventfd: EventFd, attempt: int) -> None:
    """Whoever of them runs first: what the wait does not return is still there."""
    eventfd.signal()
    counts: list[int] = []

    async def read() -> None:
        counts.append(await eventfd.wait())

    async def cancel() -> None:
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(cancel)
    assert sum(counts) + eventfd.take() == 1


async def test_one_task_waits_at_a_time(eventfd: EventFd, nursery: trio.Nursery) -> None:
    nursery.start_soon(eventfd.wait)
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await eventfd.wait()
    nursery.cancel_scope.cancel()


async def test_close_wakes_the_waiting_task(eventfd: EventFd, nursery: trio.Nursery) -> None:
    ended = trio.Event()

    async def reader() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await eventfd.wait()
        ended.set()

    nursery.start_soon(reader)
    await wait_all_tasks_blocked()
    eventfd.close()
    with trio.fail_after(60):
        await ended.wait()


@pytest.mark.parametrize("attempt", range(20))
async def test_close_just_after_a_signal(eventfd: EventFd, attempt: int) -> None:
    """The waiting task has been woken, and may find the eventfd closed when its turn comes."""

    async def read() -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            assert await eventfd.wait() == 1

    async def close() -> None:
        with eventfd.dup() as other:
            await trio.lowlevel.wait_readable(other.fileno())
        eventfd.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        eventfd.signal()


async def test_wait_on_a_closed_eventfd(eventfd: EventFd) -> None:
    eventfd.close()
    with pytest.raises(trio.ClosedResourceError):
        await eventfd.wait()


def test_close_outside_of_a_loop() -> None:
    eventfd = EventFd.create()
    eventfd.close()
    assert eventfd.closed
