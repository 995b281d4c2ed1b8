"""Devices plugged into and out of a running QEMU, with and without --sticky."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from ivshmem_server import PeerJoined, connect
from tests.qemu.helpers import SECONDS, until_left, until_ready, until_rung
from tests.rig.programs.server import start_server
from tests.rig.qemu.hotplug import plug, unplug
from tests.rig.qemu.ivshmem import doorbell_arguments, probe
from tests.rig.qemu.qemu import start_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer

pytestmark = pytest.mark.qemu


async def test_plugged_device_is_a_peer_and_unplugged_it_leaves(server: RunningServer, host: Peer) -> None:
    async with start_qemu(machine="pc") as machine:
        await plug(machine, server.socket)
        guest = await probe(machine)
        await until_ready(host, guest)
        await guest.ring(host.id)
        with trio.fail_after(SECONDS):
            assert await host.wait() == 1
        await unplug(machine)
        await until_left(host, 1)
        assert dict(host.peers) == {}
        with pytest.raises(LookupError):
            await probe(machine)


async def test_replugged_device_gets_a_new_id(server: RunningServer, host: Peer) -> None:
    """The host has seen id 1 leave; the next device must not have it."""
    async with start_qemu(machine="pc") as machine:
        for peer in (1, 2, 3):
            await plug(machine, server.socket)
            guest = await probe(machine)
            assert await guest.position() == peer
            await until_ready(host, guest)
            await unplug(machine)
            await until_left(host, peer)


@pytest.fixture
async def sticky_server(directory: Path) -> AsyncIterator[RunningServer]:
    async with start_server(directory, "-n", "2", "--sticky") as running:
        yield running


async def test_sticky_replugged_device_keeps_its_id_and_eventfds(sticky_server: RunningServer) -> None:
    """The other peers see nothing of it, and their rings find the new device."""
    async with connect(sticky_server.socket, vectors=2) as host, start_qemu(machine="pc") as machine:
        changes = host.changes()
        for _ in range(3):
            await plug(machine, sticky_server.socket)
            guest = await probe(machine)
            assert await guest.position() == 1
            await until_ready(host, guest)
            await guest.ring(host.id)
            with trio.fail_after(SECONDS):
                assert await host.wait() == 1
            await unplug(machine)
            await sticky_server.until_peers(host.id)
        await plug(machine, sticky_server.socket)
        async with connect(sticky_server.socket, vectors=2) as newcomer:
            with trio.fail_after(SECONDS):
                told = [await anext(changes), await anext(changes)]
            assert told == [PeerJoined(1, 2), PeerJoined(newcomer.id, 2)]


async def test_sticky_guest_rings_whoever_has_the_slot(sticky_server: RunningServer) -> None:
    """The guest is told of nothing. What it rings while nobody has the slot is not kept for the next."""
    visitor_id = 2
    async with (
        connect(sticky_server.socket, vectors=2) as host,
        start_qemu(*doorbell_arguments(sticky_server.socket)) as machine,
    ):
        guest = await probe(machine)
        async with connect(sticky_server.socket, vectors=2) as visitor:
            assert visitor.id == visitor_id
            await until_rung(guest, visitor, vector=0)
        await sticky_server.until_peers(host.id, 1)
        await guest.ring(visitor_id, 1)
        async with connect(sticky_server.socket, vectors=2) as visitor:
            assert visitor.id == visitor_id
            await guest.ring(visitor_id, 1)
            with trio.fail_after(SECONDS):
                assert await visitor.wait(1) == 1


async def test_sticky_server_keeps_qemu_alive_when_it_unplugs_after_a_peer_left(
    sticky_server: RunningServer,
) -> None:
    """QEMU frees a peer's table when it is told of the leave, and again when the device goes: it crashes."""
    async with connect(sticky_server.socket, vectors=2) as host, start_qemu(machine="pc") as machine:
        await plug(machine, sticky_server.socket)
        guest = await probe(machine)
        async with connect(sticky_server.socket, vectors=2) as visitor:
            await until_rung(guest, visitor, vector=0)
        await sticky_server.until_peers(host.id, 1)
        await until_ready(host, guest)
        await unplug(machine)
        await sticky_server.until_peers(host.id)
        assert (await machine.qmp.execute("query-status"))["status"] == "prelaunch"
