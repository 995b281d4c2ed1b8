"""Two User Mode Linux guests and our cable between them, pulled out and plugged in."""

from __future__ import annotations

import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.programs import process
from tests.rig.programs.backend import command, start_program, until_printed
from tests.rig.scenarios import network
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.uml

ADDRESSES = ("192.0.2.1", "192.0.2.2")
SECONDS = 60


@asynccontextmanager
async def booted(directory: Path) -> AsyncIterator[tuple[uml.Guest, uml.Guest]]:
    """Boot two guests at net.sock0 and net.sock1, which know each other and send nothing by themselves."""
    homes = [directory / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    devices = [uml.device(directory / f"net.sock{number}", DeviceId.NET) for number in range(2)]
    async with uml.boot(homes[0], devices[0]) as first, uml.boot(homes[1], devices[1]) as second:
        await network.know_each_other((first, second), ADDRESSES)
        yield first, second


async def test_two_guests_with_a_cable(directory: Path) -> None:
    control = str(directory / "control")
    argv = command("net", "-s", str(directory / "net.sock"), "--socket-count", "2", *uml.SUITED)
    async with (
        start_program(directory, [*argv, "--link", "--control", control], "net"),
        booted(directory) as (first, second),
        control_client.connect(control) as call,
    ):
        assert await network.ping(first, ADDRESSES[1], 3)
        await call.call("set_link", on="1", up=False)
        await network.until_carrier(first, 0)
        await network.until_carrier(second, 0)
        assert await network.loses_pings(first, ADDRESSES[1])
        await call.call("set_link", on="1", up=True)
        await network.until_carrier(first, 1)
        assert await network.ping(first, ADDRESSES[1], 3)
        await call.call("impair", on="0/port", direction="from_guest", loss="100%")
        assert await network.loses_pings(first, ADDRESSES[1])
        assert (await call.call("statistics", on="0/port"))["from_guest"]["lost"] == 1
        await call.call("repair", on="0/port")
        assert await network.ping(first, ADDRESSES[1], 3)


async def test_network_that_becomes_worse(directory: Path) -> None:
    """examples/lossy_network.py: each ping that is lost is one that it says it lost."""
    script = Path(__file__).parents[2] / "examples/lossy_network.py"
    argv = [sys.executable, str(script), str(directory / "net.sock"), "1"]
    async with process.start(argv) as program:
        await until_printed(program, "waiting for two guests")
        async with booted(directory) as (first, _):
            before = await network.ping_replies(first)
            await first.sh(f"ping -q -i 0.05 {ADDRESSES[1]} >/tmp/ping 2>&1 &")
            await until_printed(program, "a good line again: ")
            await first.sh("killall -INT ping; until grep -q transmitted /tmp/ping; do usleep 10000; done")
            output, printed = await first.sh("cat /tmp/ping"), program.output()
            found = re.search(r"^(\d+) packets transmitted", output, re.MULTILINE)
            assert found, output
            answered = 0
            with trio.move_on_after(SECONDS):
                while answered + lost_frames(printed)[-1] < int(found[1]):
                    answered = await network.ping_replies(first) - before
    lost = lost_frames(printed)
    assert lost[:3] == [0, 0, 0]
    assert lost[3] < lost[4] == lost[5]
    assert answered == int(found[1]) - lost[5]


def lost_frames(printed: str) -> list[int]:
    """Return how many frames the example had lost at the end of each step."""
    steps = re.findall(r"^(.+): \d+ frames so far, (\d+) lost$", printed, re.MULTILINE)
    assert [name for name, _ in steps][3:] == ["bad radio", "cut off", "a good line again"]
    return [int(lost) for _, lost in steps]
