"""ivshmem-plain on the server's memory, and master=on: QEMU without or beside the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ivshmem_server import open_memory
from tests.rig.qemu.ivshmem import MEMORY_BAR, MSIX_BAR, doorbell_arguments, probe
from tests.rig.qemu.qemu import QemuStartError, start_qemu

if TYPE_CHECKING:
    from pathlib import Path

    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu


def plain_arguments(memory: Path, size: str) -> list[str]:
    """Return the QEMU arguments for an ivshmem-plain device on the file `memory`."""
    return [
        *("-object", f"memory-backend-file,id=shared,mem-path={memory},size={size},share=on"),
        *("-device", "ivshmem-plain,memdev=shared"),
    ]


async def test_plain_device_shares_the_server_memory(server: RunningServer, host: Peer) -> None:
    async with start_qemu(*plain_arguments(server.shm, "1M")) as machine:
        guest = await probe(machine)
        assert MSIX_BAR not in guest.bars
        assert guest.bars[MEMORY_BAR].size == 1 << 20
        assert await guest.position() == 0
        await guest.write(0x2000, b"from plain")
        assert bytes(host.memory[0x2000:0x200A]) == b"from plain"
        host.memory[0:4] = b"host"
        assert await guest.read(0, 4) == b"host"
    assert dict(host.peers) == {}


async def test_plain_device_and_host_share_a_file_without_a_server(directory: Path) -> None:
    memory = directory / "memory"
    with memory.open("wb") as file:
        file.truncate(1 << 20)
    with open_memory(memory) as host:
        async with start_qemu(*plain_arguments(memory, "1M")) as machine:
            guest = await probe(machine)
            await guest.write(0, b"from the guest")
            assert bytes(host.memory[:14]) == b"from the guest"
            host.memory[-4:] = b"host"
            assert await guest.read((1 << 20) - 4, 4) == b"host"


async def test_master_is_the_first_client(server: RunningServer) -> None:
    async with start_qemu(*doorbell_arguments(server.socket, extra=",master=on")) as machine:
        assert await (await probe(machine)).position() == 0
        assert await migration_blockers(machine) == []


async def test_master_is_refused_by_qemu_after_another_client(server: RunningServer, host: Peer) -> None:
    with pytest.raises(QemuStartError, match="aster must connect to the server before any peers"):
        async with start_qemu(*doorbell_arguments(server.socket, extra=",master=on")):
            pytest.fail("QEMU made the second client a master")


async def test_only_a_master_can_migrate(machine: Machine) -> None:
    assert "ivshmem" in " ".join(await migration_blockers(machine))


async def migration_blockers(machine: Machine) -> list[str]:
    """Return the reasons for which QEMU would refuse to migrate this machine."""
    blockers: list[str] = (await machine.qmp.execute("query-migrate")).get("blocked-reasons", [])
    return blockers
