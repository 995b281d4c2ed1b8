"""How a QEMU takes it that the server turns it away: by an error a person can read, not by spinning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ivshmem_server import connect
from tests.rig.hotplug import plug
from tests.rig.ivshmem import doorbell_arguments, probe
from tests.rig.qemu import QemuStartError, start_qemu
from tests.rig.qmp import QmpError
from tests.rig.server import start_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.qemu


async def test_refused_qemu_exits_with_an_error(directory: Path) -> None:
    async with (
        start_server(directory, "--max-peers", "1") as server,
        connect(server.socket, vectors=1),
    ):
        with pytest.raises(QemuStartError, match="server sent version -2, expecting 0") as refused:
            async with start_qemu(*doorbell_arguments(server.socket, vectors=1)):
                pytest.fail("QEMU took the refusal for a welcome")
        assert refused.value.code == 1


async def test_refused_device_leaves_the_running_qemu_alone(directory: Path) -> None:
    """And the device may be plugged as soon as the server has room for it."""
    async with start_server(directory, "--max-peers", "1") as server, start_qemu(machine="pc") as machine:
        async with connect(server.socket, vectors=1):
            with pytest.raises(QmpError, match="server sent version -2, expecting 0"):
                await plug(machine, server.socket, vectors=1)
            await machine.qmp.execute("chardev-remove", id="iv-server")
        await server.until_peers()
        await plug(machine, server.socket, vectors=1)
        await server.until_peers(await (await probe(machine)).position())
