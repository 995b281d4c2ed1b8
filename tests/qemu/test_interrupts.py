"""Interrupts between guests and host peers: the doorbell out, MSI-X in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from ivshmem_server import connect
from tests.qemu.helpers import SECONDS, knock, until_joined, until_ready
from tests.rig.programs.backend import until_printed
from tests.rig.programs.server import start_server
from tests.rig.qemu.ivshmem import doorbell_arguments, probe
from tests.rig.qemu.msix import message, vector_count
from tests.rig.qemu.qemu import start_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer
    from tests.rig.qemu.ivshmem import IvshmemDevice
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

GUEST = 1


@pytest.mark.parametrize("vector", [0, 1])
async def test_host_interrupts_guest(host: Peer, guest: IvshmemDevice, vector: int) -> None:
    await until_ready(host, guest)
    host.ring(GUEST, vector)
    assert await guest.msix.wait(vector) == message(vector)
    assert not await guest.msix.fired(1 - vector)


@pytest.mark.parametrize("vector", [0, 1])
async def test_guest_interrupts_host(host: Peer, guest: IvshmemDevice, vector: int) -> None:
    await until_ready(host, guest)
    for _ in range(3):
        await guest.ring(host.id, vector)
    with trio.fail_after(SECONDS):
        assert await host.wait(vector) == 3


async def test_guest_interrupts_itself(host: Peer, guest: IvshmemDevice) -> None:
    await until_ready(host, guest)
    await guest.ring(GUEST, 1)
    assert await guest.msix.wait(1) == message(1)


async def test_two_guests_interrupt_each_other(server: RunningServer, guest: IvshmemDevice) -> None:
    async with start_qemu(*doorbell_arguments(server.socket)) as machine:
        other = await probe(machine)
        assert await knock(guest, 2, other, vector=1) == message(1)
        await other.ring(GUEST, 0)
        assert await guest.msix.wait(0) == message(0)


async def test_masked_vector_is_pending_until_unmasked(host: Peer, guest: IvshmemDevice) -> None:
    await until_ready(host, guest)
    await guest.msix.mask(0)
    host.ring(GUEST, 0)
    with trio.fail_after(SECONDS):
        while not await guest.msix.pending(0):
            pass
    assert not await guest.msix.fired(0)
    assert not await guest.msix.pending(1)

    await guest.msix.unmask(0)
    assert await guest.msix.wait(0) == message(0)
    assert not await guest.msix.pending(0)


async def test_doorbell_to_nobody_is_ignored(host: Peer, guest: IvshmemDevice, machine: Machine) -> None:
    await until_ready(host, guest)
    absent_peer, absent_vector = 0x7777, 9
    await guest.ring(absent_peer)
    await guest.ring(0xFFFF, 0xFF)
    await guest.ring(host.id, absent_vector)
    await guest.ring(host.id, 0)
    await guest.ring(host.id, 1)
    with trio.fail_after(SECONDS):
        assert [await host.wait(0), await host.wait(1)] == [1, 1]
    assert not machine.program.ended


@pytest.mark.extended
@pytest.mark.parametrize("vectors", [1, 64, 2048])
async def test_every_vector_of_a_device_works(directory: Path, vectors: int) -> None:
    async with (
        start_server(directory, "-n", str(vectors)) as server,
        connect(server.socket, vectors=vectors) as host,
        start_qemu(*doorbell_arguments(server.socket, vectors=vectors)) as machine,
    ):
        guest = await probe(machine)
        assert await vector_count(guest.pci) == vectors
        await until_ready(host, guest, vectors=vectors)
        for vector in range(vectors):
            host.ring(GUEST, vector)
            assert await guest.msix.wait(vector) == message(vector)
            await guest.ring(host.id, vector)
            with trio.fail_after(SECONDS):
                assert await host.wait(vector) == 1


async def test_device_with_fewer_vectors_than_the_server(directory: Path) -> None:
    """QEMU reports the surplus eventfds, drops them, and uses those it has vectors for."""
    async with (
        start_server(directory, "-n", "4") as server,
        connect(server.socket, vectors=4) as host,
        start_qemu(*doorbell_arguments(server.socket, vectors=2)) as machine,
    ):
        guest = await probe(machine)
        await until_joined(host, GUEST, vectors=4)
        for vector in range(4):
            host.ring(GUEST, vector)
        assert [await guest.msix.wait(vector) for vector in range(2)] == [message(0), message(1)]
        await until_printed(machine.program, "device has 2 vectors")


async def test_device_with_more_vectors_than_the_server(directory: Path) -> None:
    async with (
        start_server(directory, "-n", "2") as server,
        connect(server.socket, vectors=2) as host,
        start_qemu(*doorbell_arguments(server.socket, vectors=4)) as machine,
    ):
        guest = await probe(machine)
        await until_ready(host, guest)
        host.ring(GUEST, 0)
        assert await guest.msix.wait(0) == message(0)
        for vector in reversed(range(4)):
            await guest.ring(host.id, vector)
        with trio.fail_after(SECONDS):
            assert [await host.wait(0), await host.wait(1)] == [1, 1]
