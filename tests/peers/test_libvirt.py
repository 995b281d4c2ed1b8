"""libvirt starts, saves, destroys and attaches our devices by the XML that we print."""

from __future__ import annotations

import shlex
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
import trio

from ivshmem_server.program.qemu_args import libvirt_xml as libvirt_shmem
from tests.rig.debian import platforms
from tests.rig.guest import libvirt
from tests.rig.guest.libvirt import KVM_ID, QEMU_ID, Libvirt, VirshError, start_libvirtd
from tests.rig.programs.backend import command, start_program, until_printed
from tests.rig.programs.server import start_server
from vhost_user import DeviceId
from vhost_user.device_program.libvirt import QEMU_NAMESPACE
from vhost_user.program.installed import find
from vhost_user.program.options import parse_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.guest.guest import Shell
    from tests.rig.programs.process import Program

pytestmark = pytest.mark.peers

CONNECTED = "a front-end is connected"
CONTENT = b"sector 0".ljust(1 << 20, b"\0")

ROOT_PORTS = '<controller type="pci" index="0" model="pcie-root" />'
ROOT_PORTS += '<controller type="pci" model="pcie-root-port" />' * 8
"""What a device can be plugged into while q35 runs, beside those that libvirt takes for its own."""
GUESTS_IOMMU = '<iommu model="intel"><driver iotlb="on" /></iommu>'
VIDEO = '<video><model type="virtio" /></video>'


@dataclass(frozen=True)
class Kind:
    """A device: its command line, its type, and the guest's driver."""

    argv: str
    type: DeviceId
    driver: str
    migrates: bool = False

    def __str__(self) -> str:
        return self.argv.partition(" ")[0]


BLK = Kind("blk --blk-file {}/disk", DeviceId.BLOCK, "virtio_blk", migrates=True)
NET = Kind("net --link --socket-count 2", DeviceId.NET, "virtio_net", migrates=True)
KINDS = [
    BLK,
    NET,
    Kind("rng", DeviceId.RNG, "virtio_rng"),
    Kind("i2c --chip lm75@0x48", DeviceId.I2C_ADAPTER, "i2c_virtio"),
    Kind("gpio --line name=a", DeviceId.GPIO, "gpio_virtio"),
    Kind("input --keyboard", DeviceId.INPUT, "virtio_input"),
    Kind("vsock --guest-cid 7 --uds-path {}/v", DeviceId.VSOCK, "vmw_vsock_virtio_transport"),
]


def refused_without_kvm(kind: Kind) -> bool:
    """Tell whether the platform's QEMU is one that does not attach the device, or crashes, without KVM."""
    return platforms.selected().qemu < (8, 0) and kind.type in (DeviceId.NET, DeviceId.INPUT)


@pytest.fixture
async def running(directory: Path) -> AsyncIterator[Libvirt]:
    if reason := libvirt.unavailable():
        pytest.skip(reason)
    async with start_libvirtd(directory) as made:
        yield made


@asynccontextmanager
async def backend(kind: Kind, directory: Path) -> AsyncIterator[tuple[Program, str]]:
    """Run a back-end that libvirt's QEMU may connect to; give what it prints for its (first) guest."""
    if refused_without_kvm(kind):
        pytest.skip("QEMU 7.2 wants KVM for it")
    (directory / "disk").write_bytes(CONTENT)
    name, *rest = shlex.split(f"{kind.argv.format(directory)} -s {directory}/s")
    options = ["--mode", "0660", "--group", str(QEMU_ID)]
    async with start_program(directory, command(name, *rest, *options), "backend") as program:
        device = find(name)
        text = device.libvirt_xml(parse_options(device, name, rest))
        yield program, text.split("<!--")[1].partition("-->")[2] if "<!--" in text else text


async def until_driven(shell: Shell, kind: Kind, count: int = 1) -> None:
    """Wait until the guest has so many devices of this type, all with a driver."""
    await shell.sh(f"modprobe {kind.driver}")
    each = f"for d in /sys/bus/virtio/devices/*; do [ $(($(cat $d/device))) = {int(kind.type)} ]"
    count_them = f"{each} && [ -e $d/driver ] && echo $d; done | wc -l"
    await shell.sh(f"until [ $({count_them}) = {count} ]; do usleep 10000; done")


@pytest.mark.parametrize("kind", KINDS, ids=str)
async def test_domain_is_started_saved_destroyed_and_started_again(running: Libvirt, kind: Kind) -> None:
    async with backend(kind, running.directory) as (program, elements):
        await running.define(elements)
        await running.virsh("start", "guest")
        shell = await running.booted()
        await until_driven(shell, kind)
        saved = str(running.directory / "saved")
        if kind.migrates:
            await running.virsh("save", "guest", saved)
            await running.virsh("restore", saved)
            shell = await running.resumed()
            await until_printed(program, CONNECTED, 2)
        else:
            with pytest.raises(VirshError, match="non-migratable"):
                await running.virsh("save", "guest", saved)
        await until_driven(shell, kind)
        await running.virsh("destroy", "guest")
        await running.virsh("start", "guest")
        await until_driven(await running.booted(), kind)
        await until_printed(program, CONNECTED, 3 if kind.migrates else 2)


@pytest.mark.parametrize("video", ["", VIDEO], ids=["plain", "video"])
@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_domain_has_all_devices_that_libvirt_has_no_element_for(
    running: Libvirt, machine: str, video: str
) -> None:
    """Their slots are neither each other's nor those of libvirt's devices."""
    arguments = ""
    shared = ""
    programs = []
    async with trio.open_nursery() as nursery:
        for kind in KINDS[2:]:
            if refused_without_kvm(kind):
                continue
            where = running.directory / str(kind)
            where.mkdir(mode=0o755)

            async def serve(
                kind: Kind = kind, where: Path = where, *, task_status: trio.TaskStatus[str]
            ) -> None:
                async with backend(kind, where) as (program, elements):
                    programs.append(program)
                    task_status.started(elements)
                    await trio.sleep_forever()

            elements = await nursery.start(serve)
            memory, found = ElementTree.fromstring(f"<domain>{elements}</domain>")
            shared = ElementTree.tostring(memory, encoding="unicode")
            arguments += "".join(ElementTree.tostring(one, encoding="unicode") for one in found)
        commandline = f'<qemu:commandline xmlns:qemu="{QEMU_NAMESPACE}">{arguments}</qemu:commandline>'
        await running.define(f"{shared}{commandline}", devices=video, machine=machine)
        await running.virsh("start", "guest")
        for program in programs:
            await until_printed(program, CONNECTED)
        await running.virsh("destroy", "guest")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
async def test_domain_has_an_iommu_that_the_device_knows(running: Libvirt, kind: Kind) -> None:
    behind = replace(kind, argv=f"{kind.argv} --iommu")
    async with backend(behind, running.directory) as (program, elements):
        await running.define(elements, devices=GUESTS_IOMMU)
        await running.virsh("start", "guest")
        await until_printed(program, CONNECTED)
        await running.virsh("destroy", "guest")


async def test_domain_has_the_memory_of_an_ivshmem_server(running: Libvirt) -> None:
    """Its QEMU has the group that is let in beside its own, as kvm is on Debian."""
    options = ("--mode", "0660", "--group", str(KVM_ID), "--allow-gid", str(KVM_ID), "--vectors", "2")
    async with start_server(running.directory, *options, memfd=True) as server:
        await running.define("", devices=libvirt_shmem(str(server.socket), 2))
        for _ in range(2):
            await running.virsh("start", "guest")
            await server.until_peers(0)
            shell = await running.booted()
            assert await shell.sh("cat /sys/bus/pci/devices/*/device | grep -c 0x1110") == "1"
            await running.virsh("destroy", "guest")
            await server.until_peers()


@pytest.mark.parametrize("kind", [BLK, NET], ids=str)
async def test_device_is_attached_to_a_running_domain_and_detached(running: Libvirt, kind: Kind) -> None:
    async with backend(kind, running.directory) as (program, elements):
        memory, devices = ElementTree.fromstring(f"<domain>{elements}</domain>")
        shared = ElementTree.tostring(memory, encoding="unicode")
        await running.define(shared, devices=ROOT_PORTS)
        await running.virsh("start", "guest")
        shell = await running.booted()
        await until_driven(shell, kind, 0)
        element = running.file(ElementTree.tostring(devices[0], encoding="unicode"))
        for attached in (1, 2):
            await running.virsh("attach-device", "guest", element, "--live")
            await until_driven(shell, kind)
            await until_printed(program, CONNECTED, attached)
            await running.virsh("detach-device", "guest", element, "--live")
            await until_driven(shell, kind, 0)


async def test_guest_reads_its_disk_before_and_after_its_back_end_ended(running: Libvirt) -> None:
    read = "dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | head -c 8"
    async with backend(BLK, running.directory) as (program, elements):
        await running.define(elements)
        await running.virsh("start", "guest")
        shell = await running.booted()
        await until_driven(shell, BLK)
        assert await shell.sh(read) == "sector 0"
        program.kill()
        await program.wait()
    async with backend(BLK, running.directory) as (program, _):
        await until_printed(program, CONNECTED)
        assert await shell.sh(read) == "sector 0"
