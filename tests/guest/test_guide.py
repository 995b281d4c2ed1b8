"""docs/guest.md is true: what it tells the reader to do is done here, in a real guest."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.rig.guest import guest as rig
from tests.rig.qemu.ivshmem import doorbell_arguments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ivshmem_server import Peer
    from tests.rig.programs.server import RunningServer

pytestmark = pytest.mark.guest

PROJECT = Path(__file__).parents[2]
GUIDE = (PROJECT / "docs/guest.md").read_text()
SECONDS = 60
#: The guest sees this machine's files, and so its Python, without being able to change them.
HOST_FILES = [
    *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
    *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
]
MOUNT = """
mkdir /host
modprobe 9pnet_virtio && modprobe 9p
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144 host /host
mount -o bind /sys /host/sys && mount -o bind /dev /host/dev
"""
#: examples/ivshmem_in_guest.py in the guest.
PROGRAM = f"chroot /host {Path(sys.executable).resolve()} -IS {PROJECT}/examples/ivshmem_in_guest.py"


def blocks(language: str) -> list[str]:
    """Return the guide's code blocks in `language`."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture
async def guest(server: RunningServer, host: Peer) -> AsyncIterator[rig.Guest]:
    """A guest whose device no driver has, the second client of the server."""
    async with rig.boot(*doorbell_arguments(server.socket), *HOST_FILES) as booted:
        yield booted


async def test_the_shell_commands(host: Peer, guest: rig.Guest) -> None:
    without_driver, bind, unbind = blocks("sh")

    assert await guest.sh(without_driver) == "0x00000001\n0x600DF00D"
    assert host.memory[0x100:0x104].cast("I")[0] == 0x600DF00D
    with pytest.raises(rig.CommandError, match="Input/output error"):
        await guest.sh("cat /sys/bus/pci/devices/0000:00:0[1-9].0/resource2")
    with trio.fail_after(SECONDS):
        assert await host.wait(1) == 1
    assert await guest.sh(f"{without_driver}\n{bind}") == "0x00000001\n0x600DF00D\nvfio-pci"
    with trio.fail_after(SECONDS):
        assert await host.wait(1) == 1
    device = "cd /sys/bus/pci/drivers/vfio-pci/0000:*; address=$(basename $(readlink -f .))"
    await guest.sh(f"{device}\n{unbind}\n! ls /sys/bus/pci/drivers/vfio-pci/0000:*")


@pytest.mark.extended
async def test_the_python_program(host: Peer, guest: rig.Guest) -> None:
    await guest.sh(MOUNT)

    assert await guest.sh(f"{PROGRAM} id") == "1"
    await guest.sh(f"{PROGRAM} write 0x200 hello")
    assert bytes(host.memory[0x200:0x205]) == b"hello"
    assert await guest.sh(f"{PROGRAM} read 0x200 5") == "hello"
    await guest.sh(f"{PROGRAM} ring 0 1")
    with trio.fail_after(SECONDS):
        assert await host.wait(1) == 1
    for arguments, remedy in (
        ("wait 0", "bound to vfio-pci"),
        ("read 0xffffffff 1", "not in the shared memory"),
        ("ring x 1", "numbers are wanted"),
    ):
        with pytest.raises(rig.CommandError) as failure:
            await guest.sh(f"{PROGRAM} {arguments}")
        assert remedy in failure.value.output
        assert len(failure.value.output.splitlines()) == 1

    await guest.sh("ivshmem-bind")
    command = await guest.start(f"{PROGRAM} wait 1")
    with trio.fail_after(SECONDS):
        assert await command.line() == "waiting for vector 1"
        host.ring(1, 1)
        assert await command.finish() == "interrupt on vector 1, count 1"


def test_the_c_code_is_that_of_the_program_the_tests_run() -> None:
    source = (PROJECT / "tests/rig/guest/src/ivshmem-guest.c").read_text()

    for block in blocks("c"):
        assert block in source


@pytest.mark.extended
async def test_uio_pci_generic_hands_over_no_interrupts(guest: rig.Guest) -> None:
    bind = blocks("sh")[1].replace("vfio-pci", "uio_pci_generic").replace("vfio_iommu_type1", "uio")
    assert (await guest.sh(f"{blocks('sh')[0]}\n{bind}")).endswith("uio_pci_generic")

    with pytest.raises(rig.CommandError, match="/dev/uio0: Input/output error"):
        await guest.sh("dd if=/dev/uio0 bs=4 count=1")


@pytest.mark.extended
async def test_vfio_refuses_a_machine_without_an_iommu(server: RunningServer, host: Peer) -> None:
    async with rig.boot(*doorbell_arguments(server.socket), kernel_options="intel_iommu=off") as guest:
        with pytest.raises(rig.CommandError, match=r"vfio-pci refuses 0000:.* IOMMU"):
            await guest.sh("ivshmem-bind")
        with pytest.raises(rig.CommandError, match="no IOMMU group: give the machine an IOMMU"):
            await guest.sh("ivshmem-guest vfio wait 0")
        await guest.sh(f"ivshmem-guest sysfs ring {host.id} 0")
        with trio.fail_after(SECONDS):
            assert await host.wait(0) == 1
