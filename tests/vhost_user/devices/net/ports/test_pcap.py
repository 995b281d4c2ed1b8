"""Captures: what is in the file, and that nothing that happens to it holds up the network."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import time
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.programs import pcapng
from vhost_user.devices.net.ports.pcap import Capture, Direction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock

FRAMES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(Direction), st.binary(max_size=100)))


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file become larger: what is written beyond that fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    before = time.time_ns()
    with Capture(str(path), ["port0", "port1"]) as capture:
        capture.write(0, Direction.FROM_GUEST, [b"HEADER", memoryview(b"hello, "), b"world"], skip=6)
        capture.write(1, Direction.TO_GUEST, [b"HEA", b"DERhello"], skip=6)
        first, second = pcapng.read(path.read_bytes())  # while it goes on
    assert (first.interface, first.direction, first.length) == ("port0", "in", 12)
    assert first.data == b"hello, world"
    assert (second.interface, second.direction, second.data) == ("port1", "out", b"hello")
    assert before <= first.time <= second.time <= time.time_ns()


@given(FRAMES)
def test_what_is_written_can_be_read(frames: list[tuple[int, Direction, bytes]]) -> None:
    fd = os.memfd_create("capture")
    try:
        with Capture(f"/proc/self/fd/{fd}", ["a", "bc", "def"], snaplen=40) as capture:
            for interface, direction, data in frames:
                capture.write(interface, direction, [data])
        read = pcapng.read(os.pread(fd, os.fstat(fd).st_size, 0))
    finally:
        os.close(fd)
    assert [(each.interface, each.direction, each.data, each.length) for each in read] == [
        (["a", "bc", "def"][interface], ["in", "out"][direction - 1], data[:40], len(data))
        for interface, direction, data in frames
    ]


def test_file_that_was_there_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    path.write_bytes(b"x" * 1000)
    Capture(str(path), ["port0"]).close()
    assert pcapng.read(path.read_bytes()) == []


def test_file_that_cannot_be_made() -> None:
    with pytest.raises(FileNotFoundError):
        Capture("/none/net.pcapng", ["port0"])


def test_device_that_is_full() -> None:
    with pytest.raises(OSError, match="No space left"):
        Capture("/dev/full", ["port0"])


def test_full_disk_ends_the_capture_and_leaves_a_file_to_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net.pcapng"
    with Capture(str(path), ["port0"]) as capture, file_size_limit(5000):
        for _ in range(10):
            capture.write(0, Direction.FROM_GUEST, [bytes(1000)])
        assert not capture.is_open
    assert [each.length for each in pcapng.read(path.read_bytes())] == [1000] * 4
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f"cannot write to {path}: File too large; the capture ends, and the network goes on"
    )


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def read_all(fd: int) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(fd, 1 << 20):
            data += more
    return data


async def served(capture: Capture, fd: int) -> bytes:
    """Return what a reader gets in the end."""
    data = b""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture.run)
            while not data:
                await trio.sleep(0.05)
                data = read_all(fd)
            nursery.cancel_scope.cancel()
    return data


async def test_fifo_has_the_header_whoever_reads_it_and_when(fifo: str, autojump_clock: MockClock) -> None:
    with Capture(fifo, ["port0"]) as capture:
        capture.write(0, Direction.FROM_GUEST, [b"nobody reads this"])
        for text in (b"first", b"second"):
            fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            assert pcapng.read(header := await served(capture, fd)) == []
            capture.write(0, Direction.FROM_GUEST, [text])
            assert [each.data for each in pcapng.read(header + read_all(fd))] == [text]
            os.close(fd)
            capture.write(0, Direction.FROM_GUEST, [b"nobody reads this"])
        assert capture.is_open


async def test_slow_reader_of_a_fifo_gets_whole_frames_and_holds_up_nobody(
    fifo: str, autojump_clock: MockClock
) -> None:
    with Capture(fifo, ["port0"]) as capture:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        data = await served(capture, fd)
        for number in range(200):
            capture.write(0, Direction.FROM_GUEST, [bytes([number]) * 10000])
        while more := await read_some(capture, fd):
            data += more
        capture.write(0, Direction.FROM_GUEST, [b"later"])
        *kept, last = pcapng.read(data + read_all(fd))
        os.close(fd)
    assert last.data == b"later"
    assert 100 < len(kept) < 200
    assert [each.data for each in kept] == [bytes([number]) * 10000 for number in range(len(kept))]


async def read_some(capture: Capture, fd: int) -> bytes:
    with trio.move_on_after(1):
        return await served(capture, fd)
    return b""


async def test_file_needs_no_service(tmp_path: Path) -> None:
    with Capture(str(tmp_path / "file"), ["port0"]) as capture, trio.fail_after(60):
        await capture.run()
