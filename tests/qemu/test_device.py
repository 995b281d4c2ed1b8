"""The ivshmem device that a real QEMU builds from what the server sends."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import pytest
import trio

import ivshmem_server
from tests.qemu.helpers import SECONDS, knock, until_joined, until_ready
from tests.rig.programs.server import start_server
from tests.rig.qemu import msix, pci
from tests.rig.qemu.ivshmem import (
    DEVICE,
    MEMORY_BAR,
    MSIX_BAR,
    REGISTERS_BAR,
    VENDOR,
    doorbell_arguments,
    probe,
)
from tests.rig.qemu.qemu import start_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.programs.server import RunningServer
    from tests.rig.qemu.ivshmem import IvshmemDevice
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

MIB = 1 << 20
GIB = 1 << 30


async def test_configuration_space_identifies_the_device(guest: IvshmemDevice) -> None:
    assert await guest.pci.read(pci.VENDOR_ID, 2) == VENDOR
    assert await guest.pci.read(pci.DEVICE_ID, 2) == DEVICE
    assert await guest.pci.read(pci.REVISION_ID, 1) == 1
    assert await guest.pci.read(pci.CLASS_CODE, 2) == 0x0500  # memory controller, RAM
    assert await guest.pci.read(pci.INTERRUPT_PIN, 1) == 0
    assert await guest.pci.capabilities() == [pci.Capability(msix.CAPABILITY_ID, 0x40)]


async def test_bars_are_registers_msix_and_the_memory(guest: IvshmemDevice) -> None:
    kinds = {n: (bar.size, bar.space, bar.is_prefetchable) for n, bar in guest.bars.items()}
    assert kinds == {
        REGISTERS_BAR: (256, pci.Space.MEMORY_32, False),
        MSIX_BAR: (4096, pci.Space.MEMORY_32, False),
        MEMORY_BAR: (MIB, pci.Space.MEMORY_64, True),
    }


async def test_iv_position_is_the_id_that_peers_know(host: ivshmem_server.Peer, guest: IvshmemDevice) -> None:
    assert host.id == 0
    assert await guest.position() == 1
    await until_joined(host, 1)
    assert host.peers == {1: 2}


async def test_guest_and_host_share_the_memory(host: ivshmem_server.Peer, guest: IvshmemDevice) -> None:
    await guest.write(0x80, b"from the guest")
    assert bytes(host.memory[0x80:0x8E]) == b"from the guest"
    host.memory[MIB - 4 :] = b"host"
    assert await guest.read(MIB - 4, 4) == b"host"


async def test_two_guests_share_the_memory(server: RunningServer, guest: IvshmemDevice) -> None:
    async with start_qemu(*doorbell_arguments(server.socket)) as machine:
        other = await probe(machine)
        await other.write(0x1000, b"guest to guest")
        assert await guest.read(0x1000, 14) == b"guest to guest"
        assert await other.position() == 2


async def test_one_machine_may_have_two_devices(server: RunningServer) -> None:
    arguments = [*doorbell_arguments(server.socket), *doorbell_arguments(server.socket, name="second")]
    async with start_qemu(*arguments) as machine:
        first, second = await probe(machine, 0), await probe(machine, 1)
        assert [await first.position(), await second.position()] == [0, 1]
        await first.write(0, b"one memory")
        assert await second.read(0, 10) == b"one memory"
        assert await knock(first, 1, second, vector=1) == msix.message(1)


@pytest.mark.parametrize(("option", "size"), [("4K", 4096), ("256M", 256 * MIB), ("4G", 4 * GIB)])
async def test_memory_of_any_size_fills_bar2(directory: Path, option: str, size: int) -> None:
    async with (
        start_server(directory, "-l", option, memfd=True) as server,
        ivshmem_server.connect(server.socket, vectors=1) as host,
        start_qemu(*doorbell_arguments(server.socket, vectors=1)) as machine,
    ):
        guest = await probe(machine)
        assert guest.bars[MEMORY_BAR].size == size
        await guest.write(size - 8, b"the end.")
        assert bytes(host.memory[-8:]) == b"the end."


async def test_size_is_rounded_up_to_a_power_of_two(directory: Path) -> None:
    """QEMU aborts on any other size (assertion in pci_register_bar)."""
    async with (
        start_server(directory, "-l", "3M") as server,
        start_qemu(*doorbell_arguments(server.socket, vectors=1)) as machine,
    ):
        assert (await probe(machine)).bars[MEMORY_BAR].size == 4 * MIB


async def test_rebooted_guest_keeps_its_id_its_memory_and_its_peers(
    host: ivshmem_server.Peer, machine: Machine, guest: IvshmemDevice
) -> None:
    await until_ready(host, guest)
    await guest.write(0, b"kept")
    await machine.qmp.execute("system_reset")
    await machine.qmp.wait_event("RESET")
    assert await guest.pci.read(pci.COMMAND, 2) == 0

    guest = await probe(machine)
    assert await guest.position() == 1
    assert await guest.read(0, 4) == b"kept"
    await until_ready(host, guest)
    await guest.ring(host.id)
    with trio.fail_after(SECONDS):
        assert await host.wait() == 1


async def test_printed_arguments_attach_a_guest(server: RunningServer) -> None:
    argv = [sys.executable, "-m", "ivshmem_server.program.server", "-S", str(server.socket), "-n", "2"]
    printed = await trio.run_process([*argv, "--print-qemu-args"], capture_stdout=True)
    async with start_qemu(*shlex.split(printed.stdout.decode())) as machine:
        assert await msix.vector_count((await probe(machine)).pci) == 2
        [peer] = (await server.status())["peers"]
        assert peer["pid"] == machine.program.pid
