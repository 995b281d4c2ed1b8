"""examples/thermometer.py, started as its docstring says, and asked as a guest's driver asks."""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.docs.documents import PROJECT
from tests.vhost_user.devices.i2c.driver import Read, Write, transfer
from vhost_user.frontend import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.frontend import DriverQueue

EXAMPLE = PROJECT / "examples/thermometer.py"
SECONDS = 60


@asynccontextmanager
async def running(directory: Path, source: str) -> AsyncIterator[tuple[DriverQueue, trio.Process]]:
    """Run the example; the block gets a driver's queue and the process."""
    socket = directory / "i2c.sock"
    argv = [sys.executable, str(EXAMPLE), str(socket), source]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        with trio.fail_after(SECONDS):
            while not is_listening(socket):  # noqa: ASYNC110 -- another process does it
                await trio.sleep(0.01)
        async with connect(str(socket)) as front:
            await front.negotiate()
            yield await front.start_queue(), process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()


def is_listening(socket: Path) -> bool:
    """Return whether somebody listens at this path: the fourth field of a line has that flag, 0x10000."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(line[-1] == str(socket) and int(line[3], 16) & 0x10000 for line in lines)


async def temperature(queue: DriverQueue) -> float | None:
    """Return what the guest reads, in degrees; None where the chip does not answer."""
    _, data = await transfer(queue, Write(0x48, b"\0"), Read(0x48, 2))
    return None if data is None else int.from_bytes(data, "big", signed=True) / 256


async def test_file(directory: Path) -> None:
    file = directory / "temperature"
    async with running(directory, str(file)) as (queue, _):
        assert await temperature(queue) is None
        for celsius in (21.5, -40.25):
            file.write_text(f"{celsius}\n")
            assert await temperature(queue) == celsius
        for none in ("warm\n", "nan\n", "1e999\n"):
            file.write_text(none)
            assert await temperature(queue) is None


async def test_sine(directory: Path) -> None:
    async with running(directory, "sine") as (queue, _):
        celsius = await temperature(queue)
        assert celsius is not None
        assert 15 <= celsius <= 25


async def test_numbers_on_standard_input(directory: Path) -> None:
    async with running(directory, "-") as (queue, process):
        assert await temperature(queue) == 20
        assert process.stdin is not None
        await process.stdin.send_all(b"1\n2\n-7.5\n3")
        with trio.fail_after(SECONDS):
            while await temperature(queue) != -7.5:
                pass
        await process.stdin.send_all(b"0.25\n")
        with trio.fail_after(SECONDS):
            while await temperature(queue) != 30.25:
                pass
        await process.stdin.send_all(b"broken\n")
        with trio.fail_after(SECONDS):
            while await temperature(queue) is not None:
                pass
        await process.stdin.send_all(b"5\n")
        with trio.fail_after(SECONDS):
            while await temperature(queue) != 5:
                pass


def test_it_has_forty_lines() -> None:
    code = EXAMPLE.read_text().rpartition('"""\n\nimport')[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 40


def test_line_for_qemu_is_what_the_program_prints() -> None:
    argv = [
        sys.executable,
        "-m",
        "vhost_user.program.main",
        "run",
        "i2c",
        "-s",
        "/tmp/i2c.sock",
        "--print-qemu-args",
    ]
    printed = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=SECONDS).stdout.split()
    device = printed[-1].replace("i2c0", "i2c")
    assert f"-device {device}\n" in EXAMPLE.read_text()
