"""Our network device in a real Linux under a real QEMU, over a tap in a network namespace."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import RunningBackend, start_backend, until_printed
from tests.rig.scenarios import iperf
from tests.rig.scenarios.network import HOST, MAC, Card, bring_up
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.programs.netns import Namespace

pytestmark = pytest.mark.guest

PLAIN = "romfile=,vectors=0"
"""Nothing to boot from, which takes seconds. No MSI-X: without KVM, QEMU 7.2 crashes when it is used."""


@dataclass(frozen=True)
class World(Card):
    """A guest with our card, and its back-end."""

    guest: rig.Guest
    backend: RunningBackend
    options: tuple[str, ...]
    """Those of the back-end."""


@asynccontextmanager
async def world(
    directory: Path, net: Namespace, *, queues: int = 1, cpus: int = 1, packed: bool = False
) -> AsyncIterator[World]:
    net.add_tap("tap0", multi_queue=queues > 1)
    net.address("tap0", HOST)
    control = directory / "control"
    options = ("--tap", "tap0", "--netns", net.name, "--queues", str(queues), "--control", str(control), "-v")
    async with start_backend(directory, "net", *options) as backend:
        arguments = [
            *backend.chardev(extra=",reconnect=1"),
            *("-netdev", f"vhost-user,id=net0,chardev=backend,queues={queues}"),
            *(
                "-device",
                f"virtio-net-pci,netdev=net0,mac={MAC},mq={'on' if queues > 1 else 'off'},{PLAIN}"
                f"{',packed=on' if packed else ''}",
            ),
            *("-smp", str(cpus)),
        ]
        async with rig.boot(*arguments, shared=True, tools=("net",)) as guest:
            await guest.sh("modprobe virtio_net")
            await bring_up(guest)
            async with control_client.connect(control) as client:
                yield World(guest, client, backend, options)


async def test_guest_pings_and_large_segments_go_both_ways(directory: Path, net: Namespace) -> None:
    async with world(directory, net) as here:
        assert await here.address() == MAC
        assert await here.pings()
        assert await here.pings(20_000)
        await here.check_large_segments(iperf.Host(directory, net))

        # With QEMU, it is QEMU that tells the guest of its link; frames go through as we say.
        await here.guest.qmp.execute("set_link", name="net0", up=False)
        await here.until_carrier(0)
        await here.guest.qmp.execute("set_link", name="net0", up=True)
        await here.until_carrier(1)
        assert await here.pings()
        await here.control.call("set_link", up=False)
        assert await here.is_cut_off()
        assert await here.guest.sh("cat /sys/class/net/eth0/carrier") == "1"
        await here.control.call("set_link", up=True)
        assert await here.pings()

        await here.guest.reboot()
        await here.guest.sh("modprobe virtio_net")
        await bring_up(here.guest)
        assert await here.pings(20_000)


@pytest.mark.extended
async def test_each_cpu_has_a_pair_of_queues(directory: Path, net: Namespace) -> None:
    host = iperf.Host(directory, net)
    async with world(directory, net, queues=2, cpus=2) as here:
        assert (await here.guest.sh("ls /sys/class/net/eth0/queues")).split() == [
            "rx-0",
            "rx-1",
            "tx-0",
            "tx-1",
        ]
        data: Any = net.link("tap0")["IFLA_LINKINFO"]
        assert data.get_attr("IFLA_INFO_DATA").get_attr("IFLA_TUN_NUM_QUEUES") == 2
        for to_guest in (False, True):
            done = await host.transfer(here.guest, HOST, "-n 16M", to_guest=to_guest, streams=4)
            assert done.bytes > 1e6
        assert await here.pings()
        assert started(here.backend) == {"0", "1", "2", "3"}

        # The back-end dies, and another one goes on where it was.
        here.backend.program.kill()
        await here.backend.program.wait()
        async with start_backend(directory, "net", *here.options) as another:
            await here.guest.sh(f"until ping -c 1 -W 1 {HOST}; do :; done")
            await until_printed(another.program, "starts at", 4)
            assert started(another) == {"0", "1", "2", "3"}


@pytest.mark.extended
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
async def test_back_end_is_killed_and_another_goes_on_where_the_rings_are(
    directory: Path, net: Namespace, packed: bool
) -> None:
    """Of a packed ring QEMU knows only where it began."""
    async with world(directory, net, packed=packed) as here:
        assert await here.pings(20_000)
        here.backend.program.kill()
        await here.backend.program.wait()
        async with start_backend(directory, "net", *here.options) as another:
            await here.guest.sh(f"until ping -c 1 -W 1 {HOST}; do :; done")
            assert await here.pings(20_000)
            assert another.program.output().count("which cannot be") == (2 if packed else 0)


def started(backend: RunningBackend) -> set[str]:
    """Return the queues that the log says have started, by their numbers."""
    lines = [line for line in backend.program.output().splitlines() if "starts at" in line]
    return {line.split("queue ")[1].split()[0] for line in lines}
