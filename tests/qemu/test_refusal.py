"""A QEMU that the server refuses ends with a readable error, and does not spin."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ivshmem_server import connect
from tests.rig.programs.server import start_server
from tests.rig.qemu.hotplug import plug
from tests.rig.qemu.ivshmem import doorbell_arguments, probe
from tests.rig.qemu.qemu import QemuStartError, start_qemu
from tests.rig.qemu.qmp import QmpError

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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a QEMU as another user")
@pytest.mark.parametrize("groups", ["4712", "4713"])
async def test_qemu_of_another_user_is_admitted_by_a_supplementary_group(
    directory: Path, groups: str
) -> None:
    """As libvirt's QEMU, which has the group kvm so."""
    directory.chmod(0o711)
    another = ["setpriv", "--reuid=4711", "--regid=4711", f"--groups={groups}", "--inh-caps=-all", "--"]
    async with start_server(directory, "--mode", "0666", "--allow-gid", "4712", memfd=True) as server:
        arguments = doorbell_arguments(server.socket, vectors=1)
        if groups == "4712":
            async with start_qemu(*arguments, launcher=another) as machine:
                assert await (await probe(machine)).position() == 0
        else:
            with pytest.raises(QemuStartError, match="server sent version -3, expecting 0"):
                async with start_qemu(*arguments, launcher=another):
                    pytest.fail("QEMU took the refusal for a welcome")
            assert "uid 4711, gid 4711, groups 4713: the server does not allow" in server.program.output()
