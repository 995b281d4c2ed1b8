"""DPDK's driver for virtio in user space (virtio-user) in front of our network cards."""

from __future__ import annotations

import re
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio

from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER
from tests.peers import pings
from tests.peers.cards import HERE, ROOM, THERE, Card
from tests.peers.testpmd import SECONDS, start_testpmd
from tests.rig.programs.backend import command, start_program
from vhost_user import frontend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.peers.testpmd import Testpmd
    from tests.rig.programs.netns import Namespace
    from tests.rig.programs.process import Program

pytestmark = pytest.mark.peers


class Ring(NamedTuple):
    """Arguments of virtio-user, and the way through its rings that it takes then, in its own words."""

    arguments: str
    way: str = ""


RINGS = {
    "split": Ring("in_order=0", "using mergeable buffer Rx"),
    "split-plain": Ring("in_order=0,mrg_rxbuf=0", "using standard Rx"),
    "split-vectorized": Ring("in_order=0,mrg_rxbuf=0,vectorized=1", "using vectorized Rx"),
    "split-small": Ring("in_order=0,queue_size=32"),
    "split-large": Ring("in_order=0,queue_size=1024"),
    "packed": Ring("packed_vq=1,in_order=0", "using packed ring mergeable buffer Rx"),
    "packed-plain": Ring("packed_vq=1,in_order=0,mrg_rxbuf=0", "using packed ring standard Rx"),
    "packed-small": Ring("packed_vq=1,in_order=0,queue_size=32"),
    "packed-large": Ring("packed_vq=1,in_order=0,queue_size=1024"),
}
_VECTORS = "using packed ring vectorized Rx" if "avx512f" in Path("/proc/cpuinfo").read_text() else ""
IN_ORDER = {
    "split-in_order": Ring("in_order=1", "using inorder Rx"),
    "split-in_order-plain": Ring("in_order=1,mrg_rxbuf=0", "using inorder Rx"),
    "packed-in_order": Ring("packed_vq=1,in_order=1", "using packed ring mergeable buffer Rx"),
    "packed-in_order-plain": Ring("packed_vq=1,in_order=1,mrg_rxbuf=0", "using packed ring standard Rx"),
    "packed-vectorized": Ring("packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1", _VECTORS),
}
"""Those with IN_ORDER, which the card has to offer."""

rings = pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS.keys())
rings_in_order = pytest.mark.parametrize("ring", IN_ORDER.values(), ids=IN_ORDER.keys())
all_rings = pytest.mark.parametrize("ring", [*RINGS.values(), *IN_ORDER.values()], ids=[*RINGS, *IN_ORDER])
_MERGING = {
    name: ring for name, ring in [*RINGS.items(), *IN_ORDER.items()] if "mrg_rxbuf=0" not in ring.arguments
}
merging = pytest.mark.parametrize("ring", _MERGING.values(), ids=_MERGING.keys())
both = pytest.mark.parametrize("ring", [Ring(""), Ring("packed_vq=1")], ids=["split", "packed"])

ONE, OTHER = pings.Host(HERE, "192.0.2.1"), pings.Host(THERE, "192.0.2.2")
MAC = f"mac={OTHER.mac.hex(':')}"
"""The driver has this one, and any IP address."""

FEW = "--burst=8"
"""Frames sent at a time, and so under way: fewer than the smallest ring has room for, so none is lost."""
MULTI_SEGS = "--tx-offloads=0x8000"
"""Lets it send frames in pieces."""
MANY = 3000
"""Frames after which each ring has begun anew several times."""


def card(directory: Path, end: int | str, ring: Ring, *more: str) -> str:
    """Return the virtio-user card at a socket of `directory`."""
    return ",".join(
        ["net_virtio_user" + (str(end) or "0"), f"path={directory}/net.sock{end}", ring.arguments, *more]
    )


@asynccontextmanager
async def cable(directory: Path) -> AsyncIterator[Program]:
    """Run vhost-user-net with a cable between two guests."""
    argv = command("net", "--link", "--socket-count", "2", "--socket-path", str(directory / "net.sock"))
    async with start_program(directory, argv, "backend") as program:
        yield program


@asynccontextmanager
async def two_ports(directory: Path, ring: Ring, name: str = "testpmd") -> AsyncIterator[Testpmd]:
    """Run a testpmd with a card at both ends of the cable, which sends back and forth what it gets."""
    devices = [card(directory, end, ring) for end in range(2)]
    async with start_testpmd(directory, *devices, options=(FEW,), name=name) as testpmd:
        assert ring.way in testpmd.program.output()
        yield testpmd


async def check_traffic(testpmd: Testpmd) -> None:
    """Have frames go to and fro, without an end."""
    await testpmd.ask("start tx_first")
    await testpmd.until_received(MANY)


@rings
async def test_frames_go_to_and_fro(directory: Path, ring: Ring) -> None:
    async with cable(directory) as backend, two_ports(directory, ring) as testpmd:
        await check_traffic(testpmd)
        await testpmd.ask("stop")
        assert [each.errors for each in await testpmd.counts()] == [0, 0]
        await testpmd.quit()
        assert "broken" not in backend.output()


@both
async def test_port_is_stopped_and_started_again(directory: Path, ring: Ring) -> None:
    async with cable(directory), two_ports(directory, ring) as testpmd:
        for _ in range(3):
            await check_traffic(testpmd)
            for what in ("stop", "port stop all", "port start all"):
                await testpmd.ask(what)
        await testpmd.quit()


@both
async def test_testpmd_is_killed_and_started_again(directory: Path, ring: Ring) -> None:
    async with cable(directory) as backend:
        for number in range(3):
            async with two_ports(directory, ring, f"testpmd{number}") as testpmd:
                await check_traffic(testpmd)
                testpmd.program.kill()
                await testpmd.program.wait()
        assert "broken" not in backend.output()


@both
async def test_backend_is_terminated_under_traffic(directory: Path, ring: Ring) -> None:
    """It ends at once. As a client, testpmd would not come again, and ends by SIGPIPE."""
    async with cable(directory) as backend, two_ports(directory, ring) as testpmd:
        await check_traffic(testpmd)
        backend.terminate()
        with trio.fail_after(SECONDS):
            assert await backend.wait() == 0
        assert "broken" not in backend.output()


@both
async def test_frames_are_what_was_sent(directory: Path, ring: Ring) -> None:
    """Pings are answered with what was in them, and good checksums."""
    async with (
        cable(directory),
        frontend.connect(directory / "net.sock0", patience=SECONDS) as front,
        start_testpmd(directory, card(directory, 1, ring, MAC)) as testpmd,
    ):
        await front.negotiate(Feature.VERSION_1)
        ours = await Card.start(front)
        await testpmd.ask("set fwd icmpecho")
        await testpmd.ask("start")
        arp = await exchange(ours, pings.who_has(OTHER.address, ONE))
        assert arp == pings.is_at(OTHER, ONE)
        for number in range(200):
            data = bytes((at * 7 + number) % 251 for at in range(18 + number * 73 % 1400))
            answer = await exchange(ours, pings.echo(ONE, OTHER, number, data))
            assert answer == pings.echo_reply(OTHER, ONE, number, data)


@rings
async def test_frames_in_pieces(directory: Path, ring: Ring) -> None:
    """A frame in several buffers is an indirect table, or a chain of descriptors."""
    sizes = 100, 200, 300
    async with (
        cable(directory) as backend,
        frontend.connect(directory / "net.sock0", patience=SECONDS) as front,
        start_testpmd(directory, card(directory, 1, ring), options=(MULTI_SEGS, "--burst=4")) as testpmd,
    ):
        await front.negotiate(Feature.VERSION_1)
        ours = await Card.start(front)
        await testpmd.ask("set fwd txonly")
        await testpmd.ask(f"set txpkts {','.join(map(str, sizes))}")
        waiting = deque(ours.rx.submit(ROOM) for _ in range(100))
        await testpmd.ask("start")
        for _ in range(MANY):
            frame = (await ours.rx.wait(waiting.popleft()))[HEADER.size :]
            assert len(frame) == pings.ip_size(frame) == sum(sizes)
            waiting.append(ours.rx.submit(ROOM))
        await testpmd.ask("stop")
        assert "broken" not in backend.output()


async def exchange(ours: Card, frame: bytes) -> bytes:
    """Send a frame; return the answer."""
    receiving = ours.rx.submit(ROOM)
    await ours.tx.request(bytes(HEADER.size), frame)
    return (await ours.rx.wait(receiving))[HEADER.size :]


# The driver alone, with what it has sent


@asynccontextmanager
async def looped(directory: Path, name: str, *, connects: bool = False) -> AsyncIterator[Program]:
    """Run a card that gives back what it gets; it listens, or connects to whoever does."""
    where = "--connect" if connects else "--socket-path"
    argv = command("tests.peers.looped:Looped", where, str(directory / "net.sock"))
    async with start_program(directory, argv, name) as program:
        yield program


@rings_in_order
async def test_frames_come_back_in_order(directory: Path, ring: Ring) -> None:
    async with (
        looped(directory, "backend") as backend,
        start_testpmd(directory, card(directory, "", ring), options=(FEW,)) as testpmd,
    ):
        assert ring.way in testpmd.program.output()
        await check_traffic(testpmd)
        await testpmd.ask("stop")
        assert [each.errors for each in await testpmd.counts()] == [0]
        await testpmd.quit()
        assert "broken" not in backend.output()


@merging
async def test_large_frames_come_back(directory: Path, ring: Ring) -> None:
    """In several buffers both ways: they are merged for the driver, which sends them on as they are."""
    async with (
        looped(directory, "backend") as backend,
        start_testpmd(directory, card(directory, "", ring), options=(FEW, MULTI_SEGS)) as testpmd,
    ):
        await testpmd.ask("set txpkts 1500,1500,1500")
        await check_traffic(testpmd)
        await testpmd.ask("stop")
        (counts,) = await testpmd.counts()
        assert counts.errors == 0
        assert counts.received_bytes == 4500 * counts.received
        await testpmd.quit()
        assert "broken" not in backend.output()


@both
async def test_pairs_of_queues_beside_each_other(directory: Path, ring: Ring) -> None:
    async with (
        looped(directory, "backend") as backend,
        start_testpmd(
            directory, card(directory, "", ring, "queues=2"), options=(FEW, "--rxq=2", "--txq=2")
        ) as testpmd,
    ):
        await check_traffic(testpmd)
        stopped = await testpmd.ask("stop")
        received = re.findall(r"RX Port= 0/Queue= \d .*\n +RX-packets: (\d+)", stopped)
        assert len(received) == 2, stopped
        assert all(int(count) > MANY // 10 for count in received)
        await testpmd.quit()
        assert "broken" not in backend.output()


@all_rings
async def test_backend_is_killed_under_traffic_and_started_again(directory: Path, ring: Ring) -> None:
    """The driver listens, and has the next one begin at base 0, however far the rings are."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(looped(directory, "backend", connects=True))
        listening = start_testpmd(directory, card(directory, "", ring, "server=1"), options=(FEW,))
        testpmd = await stack.enter_async_context(listening)
        for number in range(2):
            await check_traffic(testpmd)
            backend.kill()
            await backend.wait()
            again = looped(directory, f"backend{number}", connects=True)
            backend = await stack.enter_async_context(again)
            await testpmd.until_printed("reconnection succeeds", count=number + 1)
            await testpmd.ask("stop")  # frames that were in the back-end's hands are lost
        await check_traffic(testpmd)
        assert "broken" not in backend.output()
        await testpmd.quit()


# A real vhost-user-net that connects


@both
async def test_card_at_a_tap_is_killed_and_started_again(directory: Path, ring: Ring, net: Namespace) -> None:
    """A host pings a driver that listens, over a tap that stays."""
    net.add_tap("tap0")
    net.address("tap0", ONE.address)
    argv = command("net", "--connect", str(directory / "net.sock"), "--tap", "tap0", "--netns", net.name)
    with trio.socket.from_stdlib_socket(net.packets("tap0")) as host:
        async with AsyncExitStack() as stack:
            backend = await stack.enter_async_context(start_program(directory, argv, "backend"))
            listening = start_testpmd(directory, card(directory, "", ring, "server=1", MAC))
            testpmd = await stack.enter_async_context(listening)
            await testpmd.ask("set fwd icmpecho")
            await testpmd.ask("start")
            for number in range(3):
                for again in range(100):
                    await until_answered(host, 100 * number + again)
                backend.kill()
                await backend.wait()
                backend = await stack.enter_async_context(start_program(directory, argv, f"backend{number}"))
            await until_answered(host, 0)
            assert "broken" not in backend.output()


async def until_answered(host: trio.socket.SocketType, number: int) -> None:
    """Ping until an answer comes: between two back-ends, some are lost."""
    data = bytes((at * 7 + number) % 251 for at in range(18 + number * 73 % 1400))
    with trio.fail_after(SECONDS):
        while True:
            await host.send(pings.echo(ONE, OTHER, number, data))
            with trio.move_on_after(1):
                while await host.recv(ROOM) != pings.echo_reply(OTHER, ONE, number, data):
                    pass
                return
