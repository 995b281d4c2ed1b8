"""Two Linux guests under QEMU at our switch: pings, losses, a cable pulled out."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.net import NetFeature
from tests.rig.guest import guest as rig
from tests.rig.programs import pcapng
from tests.rig.programs.backend import command, start_program
from tests.rig.scenarios import iperf, network
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vhost_user.simulation.control_client import ControlClient

pytestmark = pytest.mark.guest

PINGS = 40
BULK = 16 << 20
ETHERNET_FRAME = 1514
MAC = "52:54:00:00:00:0{}"
ADDRESS = "10.0.0.{}"
FIRST, SECOND = ADDRESS.format(1), ADDRESS.format(2)
SECONDS = 60


# Without KVM, QEMU 7.2 crashes on a vhost-user network card with MSI-X; with vectors=0 it has none.
CARD = "virtio-net-pci,netdev=net,vectors=0,mac="


def arguments(directory: Path, port: int, number: int | None = None) -> list[str]:
    """Return the QEMU arguments for a guest at this port of the switch, and with this number or the same."""
    return [
        *("-chardev", f"socket,id=net,path={directory}/net.sock{port}"),
        *("-netdev", "vhost-user,id=net,chardev=net"),
        *("-device", f"{CARD}{MAC.format(port if number is None else number)}"),
    ]


@asynccontextmanager
async def guests(directory: Path, *options: str, count: int = 2) -> AsyncIterator[list[rig.Guest]]:
    """Boot guests at a switch with `options`, all at a time; each can be reached at its ADDRESS."""
    socket = str(directory / "net.sock")
    argv = command("net", "--switch", "-s", socket, "--socket-count", str(count), *options)
    booted: dict[int, rig.Guest] = {}

    async def run(number: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with rig.boot(
            *arguments(directory, number), name=f"guest{number}", shared=True, tools=["net"]
        ) as guest:
            await guest.sh("modprobe virtio_net")
            booted[number] = guest
            task_status.started()
            await trio.sleep_forever()

    async with start_program(directory, argv, "net"), trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for number in range(count):
                starting.start_soon(nursery.start, run, number)
        ordered = [booted[number] for number in range(count)]
        await network.know_each_other(ordered, [ADDRESS.format(number + 1) for number in range(count)])
        yield ordered
        nursery.cancel_scope.cancel()


async def lost_pings(guest: rig.Guest, call: ControlClient) -> int:
    """Ping the second guest; return how many pings the device has lost, when all others are answered."""
    before = await network.ping_replies(guest)
    text = await guest.sh(f"ping -q -c {PINGS} -i 0.02 -W 1 {SECOND} || true")
    assert f"{PINGS} packets transmitted" in text
    answered = lost = 0
    with trio.move_on_after(SECONDS):
        while answered + lost < PINGS:
            answered = await network.ping_replies(guest) - before
            lost = (await call.call("statistics", on="1/port"))["to_guest"]["lost"]
    assert answered == PINGS - lost
    return int(lost)


async def test_two_guests_at_a_switch(directory: Path) -> None:
    capture, control = directory / "net.pcapng", str(directory / "control")
    options = (
        "--pcap",
        str(capture),
        "--pcap-snaplen",
        "256",
        "--control",
        control,
        "--seed",
        "5",
    )
    async with guests(directory, *options) as (first, second), control_client.connect(control) as call:
        assert await network.ping(first, SECOND, 3)
        table = await call.call("mac_table", on="0/port")
        assert {(entry["address"], entry["port"]) for entry in table} == {
            (MAC.format(0), 0),
            (MAC.format(1), 1),
        }

        # What is lost is what was counted as lost, to the packet.
        await call.call("impair", on="1/port", direction="to_guest", loss="20%")
        lost = await lost_pings(first, call)
        assert 0 < lost < PINGS
        await call.call("repair", on="1/port")

        # A slow line.
        await call.call("impair", on="0/port", delay="60ms")
        text = await first.sh(f"ping -q -c 3 -i 0.1 -W {SECONDS} {SECOND}")
        found = re.search(r"min/avg/max = ([\d.]+)/", text)
        assert found, text
        assert float(found[1]) >= 120
        await call.call("repair", on="0/port")

        # TCP, with segments as large as the guests make them.
        await second.sh(iperf.serve())
        end = json.loads(await first.sh(f"iperf3 -c {SECOND} -n {BULK} -w 128K -J"))["end"]
        assert end["sum_sent"]["bytes"] >= BULK
        assert end["sum_received"]["bytes"] > BULK // 2  # without what is under way when iperf3 stops

        # A cable that is pulled out, and plugged in again.
        await call.call("set_link", on="1", up=False)
        for _ in range(2):
            assert await network.loses_pings(first, SECOND)
        await call.call("set_link", on="1", up=True)
        assert await network.ping(first, SECOND, 3)
    check_capture(pcapng.read(capture.read_bytes()), lost)


async def port_of(call: ControlClient, number: int) -> int | None:
    """Return where the switch has the guest of that number."""
    table = await call.call("mac_table", on="0/port")
    return next((entry["port"] for entry in table if entry["address"] == MAC.format(number)), None)


@pytest.mark.extended
async def test_guest_that_migrates_to_another_port_says_so(directory: Path) -> None:
    """QEMU has it announce itself, and the switch sends it what is for it from then on."""
    control = str(directory / "control")
    options = ("--socket-count", "3", "--control", control)
    async with (
        guests(directory, *options) as (first, second),
        rig.await_migration(*arguments(directory, 2, 0), name="target") as target,
        control_client.connect(control) as call,
    ):
        assert await network.ping(second, FIRST, 2)
        uri = f"unix:{directory}/migration"
        await target.qmp.execute("migrate-incoming", uri=uri)
        await first.qmp.execute("migrate", uri=uri)
        with trio.fail_after(120):
            while await port_of(call, 0) != 2:  # noqa: ASYNC110 -- guests and QEMU take their time
                await trio.sleep(0.05)
        assert await network.ping(second, FIRST, 3)


def check_capture(packets: list[pcapng.Packet], lost: int) -> None:
    """Fail unless all pings are in the capture, and those that were lost at the first port only."""
    requests = [packet for packet in packets if is_ping(packet)]
    sent = {packet.data[38:] for packet in requests if packet.interface == "port0"}
    assert len(sent) == 3 + PINGS + 3 + 2 + 3
    arrived = {packet.data[38:] for packet in requests if packet.interface == "port1"}
    assert arrived < sent
    assert len(sent - arrived) == lost + 2
    assert max(packet.length for packet in packets if packet.interface == "port1") > 8 * ETHERNET_FRAME
    assert [packet.time for packet in packets] == sorted(packet.time for packet in packets)


def is_ping(packet: pcapng.Packet) -> bool:
    """Tell whether it is an echo request."""
    return packet.data[12:14] == b"\x08\x00" and packet.data[23] == 1 and packet.data[34] == 8


@pytest.mark.extended
async def test_features_that_are_withheld_are_not_the_guests(directory: Path) -> None:
    """Nor those that need them. QEMU keeps the control queue to itself, whatever a back-end offers."""
    options = ("--without", "VIRTIO_NET_F_CSUM", "--without", "mrg-rxbuf", "--without", "guest_tso4")
    async with guests(directory, *options) as (first, _):
        features = await first.sh("cat /sys/class/net/e*/device/features")
        on = {NetFeature(1 << bit) for bit, digit in enumerate(features.strip()) if digit == "1" and bit < 24}
        assert not on & {NetFeature.CSUM, NetFeature.MRG_RXBUF, NetFeature.GUEST_TSO4}
        assert not on & {NetFeature.HOST_TSO4, NetFeature.HOST_TSO6, NetFeature.HOST_ECN}
        assert {NetFeature.MAC, NetFeature.GUEST_CSUM, NetFeature.GUEST_TSO6} <= on
        assert await network.ping(first, SECOND, 3)
