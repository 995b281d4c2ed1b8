"""The entropy device, with sources and quotas of every kind."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.program.command_line import UserError
from tests.vhost_user.raw_frontend import attached
from vhost_user.devices.rng import MAX_READ, Quota, Rng, RngProgram, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """A file with the numbers from 0 to 99."""
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(100)))
    return str(path)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A FIFO's path, and the descriptor to write to it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    yield str(path), fd
    os.close(fd)


async def test_random_bytes() -> None:
    with Rng() as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            results = {(await queue.exchange([], [32]))[0] for _ in range(20)}
    assert len(results) == 20
    assert {len(result) for result in results} == {32}


async def test_chain_of_several_buffers_is_filled(numbers: str) -> None:
    with Rng(numbers) as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            assert await queue.exchange([], [10, 20, 5]) == [
                bytes(range(10)),
                bytes(range(10, 30)),
                bytes(range(30, 35)),
            ]


async def test_chain_of_more_buffers_than_can_be_read_into_at_once_gets_a_part() -> None:
    with Rng() as rng:
        async with attached(rng) as frontend:
            queue = await frontend.start(size=2048)
            parts = await queue.exchange([], [4] * 2000)
            assert sum(map(len, parts)) == 4 * os.sysconf("SC_IOV_MAX")


async def test_file_begins_again_at_its_end(numbers: str) -> None:
    with Rng(numbers) as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            assert await queue.exchange([], [200]) == [bytes(range(100))]
            assert await queue.exchange([], [200]) == [bytes(range(100))]


async def test_huge_request_gets_a_part() -> None:
    with Rng("/dev/zero") as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            (data,) = await queue.exchange([], [1 << 20])
    assert len(data) == MAX_READ


async def test_request_without_room_comes_back_empty() -> None:
    with Rng() as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            assert await queue.exchange([b"nothing to write to"], []) == []


async def test_source_that_has_nothing_yet_is_waited_for(fifo: tuple[str, int]) -> None:
    path, writer = fifo
    with Rng(path) as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            queue.submit([], [16])
            await wait_all_tasks_blocked()
            assert queue.collect() == []
            os.write(writer, b"entropy")
            assert await queue.wait() == [[b"entropy"]]


async def test_stop_takes_a_waiting_request_away_at_once(fifo: tuple[str, int]) -> None:
    path, writer = fifo
    with Rng(path) as device:
        device.drain_seconds = 60
        async with attached(device) as frontend:
            queue = await frontend.start()
            queue.submit([], [16])
            await wait_all_tasks_blocked()
            assert await queue.stop() == 0
            await queue.start()
            os.write(writer, b"entropy")
            assert await queue.wait() == [[b"entropy"]]


async def test_quota_is_shared_by_requests(autojump_clock: MockClock, numbers: str) -> None:
    with Rng(numbers, period=1, max_bytes=50) as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            began = trio.current_time()
            for number in range(6):
                (data,) = await queue.exchange([], [30])
                assert len(data) == (30 if number % 2 == 0 else 20)
                assert number // 2 <= trio.current_time() - began < number // 2 + 1


async def test_quota_that_was_not_used_is_not_lost(autojump_clock: MockClock, fifo: tuple[str, int]) -> None:
    path, writer = fifo
    with Rng(path, period=1000, max_bytes=10) as device:
        async with attached(device) as frontend:
            queue = await frontend.start()
            began = trio.current_time()
            for data in (b"ab", b"cdefg", b"hij"):
                os.write(writer, data)
                assert await queue.exchange([], [16]) == [data]
            assert trio.current_time() == began


async def test_quota(autojump_clock: MockClock) -> None:
    quota = Quota(100, 5)
    assert [quota.take(60), quota.take(60), quota.take(60)] == [60, 40, 0]
    quota.give_back(10)
    assert quota.take(60) == 10
    began = trio.current_time()
    await quota.wait()
    assert trio.current_time() == began + 5
    assert quota.take(60) == 60


async def test_device_that_cannot_be_polled_is_asked_again_later(autojump_clock: MockClock) -> None:
    """As with /dev/hwrng, nothing tells when it has something."""
    source = Source("/dev/zero")
    began = trio.current_time()
    await source._until_readable()
    assert trio.current_time() > began
    source.close()


async def test_source_that_fails_is_tried_again_and_told_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    source = Source("/dev/zero")
    only_written = os.open("/dev/null", os.O_WRONLY)
    os.dup2(only_written, source._fd.fileno(), inheritable=False)
    os.close(only_written)
    with trio.move_on_after(10):
        await source.read_into([memoryview(bytearray(1))])
    assert caplog.messages == ["cannot read /dev/zero: Bad file descriptor; trying again"]
    source.close()


def test_directory_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Source(str(tmp_path))


async def test_guests_of_one_program_never_get_the_same_bytes(numbers: str) -> None:
    with Rng(numbers) as first, first.for_another_guest() as second:
        async with attached(first) as one, attached(second) as another:
            queues = [await one.start(), await another.start()]
            got = [await queue.exchange([], [10]) for queue in [*queues, *queues]]
        assert got == [[bytes(range(start, start + 10))] for start in (0, 10, 20, 30)]


async def test_guest_of_one_program_has_bytes_while_another_waits(
    mock_clock: MockClock, numbers: str
) -> None:
    """Each has a limit of its own."""
    with Rng(numbers, period=1000, max_bytes=10) as first, first.for_another_guest() as second:
        async with attached(first) as one, attached(second) as another:
            greedy, modest = await one.start(), await another.start()
            assert await greedy.exchange([], [10]) == [bytes(range(10))]
            greedy.submit([], [10])
            await wait_all_tasks_blocked()
            assert greedy.collect() == []
            assert await modest.exchange([], [10]) == [bytes(range(10, 20))]


async def test_guests_of_one_program_wait_for_a_fifo_together(fifo: tuple[str, int]) -> None:
    path, writer = fifo
    with Rng(path) as first, first.for_another_guest() as second:
        async with attached(first) as one, attached(second) as another:
            queues = [await one.start(), await another.start()]
            for queue in queues:
                queue.submit([], [4])
            await wait_all_tasks_blocked()
            os.write(writer, b"abcd")
            os.write(writer, b"efgh")
            got = [await queue.wait() for queue in queues]
    assert sorted(data for ((data,),) in got) == [b"abcd", b"efgh"]


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.set_defaults(socket_path=None)
    RngProgram().add_options(parser)
    return parser.parse_args(argv)


def test_options_have_the_defaults_of_rust_vmms() -> None:
    assert vars(options()) == {
        "filename": "/dev/urandom",
        "period": 60000,
        "max_bytes": None,
        "socket_path": None,
    }


def test_long_and_short_options() -> None:
    long = options("--filename", "/dev/zero", "--period", "5", "--max-bytes", "7")
    assert long == options("-f", "/dev/zero", "-p", "5", "-m", "7")
    with RngProgram().make(long)[0]:
        pass


@pytest.mark.parametrize(("text", "milliseconds"), [("20", 20), ("20ms", 20), ("1.5s", 1500)])
def test_period_is_in_milliseconds_unless_it_says_otherwise(text: str, milliseconds: float) -> None:
    assert options("-p", text).period == pytest.approx(milliseconds)


@pytest.mark.parametrize("text", ["0", "1us", "0.5", "-1", "9" * 11, "9999999s"])
def test_what_is_no_period(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("-p", text)
    error = capsys.readouterr().err
    assert f"'{text}' is not a period" in error or f"'{text}' is not a time" in error


def test_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(
        UserError, match="cannot read /none: No such file or directory; give another file with -f"
    ):
        RngProgram().make(options("-f", "/none"))
