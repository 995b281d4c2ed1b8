"""Our network device in User Mode Linux, over a tap, with the control queue."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.scenarios import iperf
from tests.rig.scenarios.network import HOST, MAC, Card, bring_up
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.programs.netns import Namespace

pytestmark = pytest.mark.uml

OTHER = "52:54:00:dd:ee:ff"
SECONDS = 60
ARP = b"\x08\x06"


@asynccontextmanager
async def world(
    directory: Path, net: Namespace, *options: str, tools: tuple[str, ...] = ()
) -> AsyncIterator[Card]:
    net.add_tap("tap0")
    control = directory / "control"
    argv = ("--tap", "tap0", "--netns", net.name, "--mac", MAC, "--control", str(control), *options)
    async with uml.boot_with(directory, DeviceId.NET, "net", *argv, tools=tools) as (guest, _):
        net.address("tap0", HOST)
        await bring_up(guest)
        async with control_client.connect(control) as client:
            yield Card(guest, client)


async def test_guest_pings_and_is_what_its_driver_makes_of_it(directory: Path, net: Namespace) -> None:
    async with world(directory, net) as here:
        guest = here.guest
        assert await here.address() == MAC
        assert await here.pings()
        assert await here.pings(20_000)

        # The driver filters by what it says over the control queue, until it is promiscuous.
        stranger = b"\2\2\2\2\2\2" + bytes.fromhex(OTHER.replace(":", "")) + b"\x88\xb5" + bytes(46)
        with net.packets("tap0") as host:
            before = await here.statistics()
            host.send(stranger)
            await until_counted(here, "to_guest_filtered", before["to_guest_filtered"] + 1)
            await guest.sh("ip link set eth0 promisc on")
            before = await here.statistics()
            host.send(stranger)
            await until_counted(here, "to_guest_frames", before["to_guest_frames"] + 1)
            await guest.sh("ip link set eth0 promisc off")

        await guest.sh(f"ip link set eth0 address {OTHER}")
        assert await here.control.call("mac") == OTHER
        assert await here.pings()


async def test_large_segments_go_both_ways(directory: Path, net: Namespace) -> None:
    async with world(directory, net, tools=("net",)) as here:
        await here.check_large_segments(iperf.Host(directory, net))


async def test_link_goes_down_and_up_and_the_guest_announces_itself(directory: Path, net: Namespace) -> None:
    async with world(directory, net) as here:
        assert await here.pings()
        await here.control.call("set_link", up=False)
        await here.until_carrier(0)
        assert net.link("tap0")["IFLA_CARRIER"] == 0
        assert await here.is_cut_off()
        await here.control.call("set_link", up=True)
        await here.until_carrier(1)
        assert await here.pings()

        with net.packets("tap0") as host:
            await here.control.call("announce")
            sender = bytes.fromhex(MAC.replace(":", ""))
            with trio.fail_after(SECONDS):
                frame = b""
                while frame[:14] != b"\xff" * 6 + sender + ARP:
                    await trio.lowlevel.wait_readable(host)
                    frame = host.recv(2000)


async def test_driver_is_bound_again(directory: Path, net: Namespace) -> None:
    async with world(directory, net) as here:
        await here.guest.sh(
            "cd /sys/bus/virtio/drivers/virtio_net;"
            " for round in 1 2 3; do echo virtio0 >unbind; echo virtio0 >bind; done"
        )
        await bring_up(here.guest)
        assert await here.pings()
        assert await here.pings(20_000)


async def until_counted(here: Card, name: str, least: int) -> None:
    """Wait until a count of the device's is as high."""
    with trio.fail_after(SECONDS):
        while (await here.statistics())[name] < least:
            pass
