"""Two User Mode Linux guests, connected by a cable of ours that is pulled out and plugged in."""

from __future__ import annotations

import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from tests.rig import process, uml
from tests.rig.backend import command, start_program, until_printed
from vhost_user import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.uml

ADDRESSES = ("192.0.2.1", "192.0.2.2")


@asynccontextmanager
async def booted(directory: Path) -> AsyncIterator[tuple[uml.Guest, uml.Guest]]:
    """Boot two guests at net.sock0 and net.sock1, which know each other and send nothing by themselves."""
    homes = [directory / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    devices = [uml.device(directory / f"net.sock{number}", DeviceId.NET) for number in range(2)]
    async with uml.boot(homes[0], devices[0]) as first, uml.boot(homes[1], devices[1]) as second:
        guests = (first, second)
        macs = [await guest.sh("cat /sys/class/net/eth0/address") for guest in guests]
        for number, guest in enumerate(guests):
            other = 1 - number
            await guest.sh(
                "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6 >/dev/null;"
                f" ip addr add {ADDRESSES[number]}/24 dev eth0 && ip link set eth0 up"
                f" && arp -i eth0 -s {ADDRESSES[other]} {macs[other]}"
            )
        yield first, second


async def pings(guest: uml.Guest, count: int = 3) -> bool:
    """Tell whether all pings to the second guest are answered."""
    output = await guest.sh(f"ping -q -c {count} -i 0.1 -W 1 {ADDRESSES[1]} || true")
    return f"{count} packets transmitted, {count} packets received" in output


async def until_carrier(guest: uml.Guest, value: int) -> None:
    """Wait until the guest sees its link so."""
    await guest.sh(f"until [ $(cat /sys/class/net/eth0/carrier) = {value} ]; do usleep 20000; done")


async def test_two_guests_with_a_cable(directory: Path) -> None:
    control = str(directory / "control")
    argv = command("net", "-s", str(directory / "net.sock"), "--socket-count", "2", *uml.SUITED)
    async with (
        start_program(directory, [*argv, "--link", "--control", control], "net"),
        booted(directory) as (first, second),
        control_client.connect(control) as call,
    ):
        assert await pings(first)
        await call.call("set_link", on="1", up=False)
        await until_carrier(first, 0)
        await until_carrier(second, 0)
        assert not await pings(first, 1)
        await call.call("set_link", on="1", up=True)
        await until_carrier(first, 1)
        assert await pings(first)
        await call.call("impair", on="0/port", direction="from_guest", loss="100%")
        assert not await pings(first, 1)
        assert (await call.call("statistics", on="0/port"))["from_guest"]["lost"] == 1
        await call.call("repair", on="0/port")
        assert await pings(first)


async def test_network_that_becomes_worse(directory: Path) -> None:
    """examples/lossy_network.py: each ping that is lost is one that it says it lost."""
    script = Path(__file__).parents[2] / "examples/lossy_network.py"
    argv = [sys.executable, str(script), str(directory / "net.sock"), "0.4"]
    async with process.start(argv) as program:
        await until_printed(program, "waiting for two guests")
        async with booted(directory) as (first, _):
            output = await first.sh(f"ping -q -c 40 -i 0.1 {ADDRESSES[1]}")
        await until_printed(program, "a good line again: ")
        printed = program.output()
    steps = re.findall(r"^(.+): (\d+) frames so far, (\d+) lost$", printed, re.MULTILINE)
    assert [step[0] for step in steps][3:] == ["bad radio", "cut off", "a good line again"]
    lost = [int(step[2]) for step in steps]
    assert lost[:3] == [0, 0, 0]
    assert lost[3] < lost[4] == lost[5]
    found = re.search(r"(\d+) packets transmitted, (\d+) packets received", output)
    assert found, output
    assert (int(found[1]), int(found[2])) == (40, 40 - lost[5])
