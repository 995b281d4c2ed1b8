"""What --print-qemu-args prints starts a real QEMU, split by a shell's rules.

Every device, and every option that changes the line.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from protocol.virtio.net import NetFeature
from tests.qemu import own_devices
from tests.qemu.blk_driver import BLOCK, CONTENT, MQ, NUM_QUEUES, config, read
from tests.qemu.virtio_pci import ACCESS_PLATFORM, probe
from tests.rig.programs.backend import (
    command,
    start_backend,
    start_program,
    until_printed,
)
from tests.rig.qemu.qemu import qemu_command
from tests.rig.qemu.shared_memory import start_machine
from vhost_user.device_program.qemu import Qemu, ask
from vhost_user.program.installed import find
from vhost_user.program.options import parse_options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.rig.programs.netns import Namespace
    from tests.rig.qemu.qemu import Machine

pytestmark = pytest.mark.qemu

NET, RNG = 1, 4
ODD_NAME = "it's, a b=c"


MODULE = "tests.qemu.own_devices"
GUESTS_IOMMU = ("-device", "intel-iommu,intremap=off,device-iotlb=on")

DISK = "blk --blk-file {}/disk"
I2C = "i2c --chip lm75@0x48"
GPIO = "gpio --line name=a"
VSOCK = "vsock --guest-cid 7 --uds-path {}/v"
VMS = "vsock --vm guest-cid=3,socket={0}/a,uds-path={0}/ua --vm guest-cid=4,socket={0}/b,uds-path={0}/ub"


@dataclass(frozen=True)
class Case:
    """A command line, and the types of the devices that each of its guests has."""

    argv: str
    types: tuple[DeviceId, ...]
    guests: int = 1

    def __str__(self) -> str:
        return self.argv


EACH_TYPE = [
    Case(DISK, (DeviceId.BLOCK,)),
    Case("rng", (DeviceId.RNG,)),
    Case(I2C, (DeviceId.I2C_ADAPTER,)),
    Case(GPIO, (DeviceId.GPIO,)),
    Case("input --keyboard", (DeviceId.INPUT,)),
    Case("net --link --socket-count 2", (DeviceId.NET,), guests=2),
    Case(VSOCK, (DeviceId.VSOCK,)),
    Case("console --console none", (DeviceId.CONSOLE,)),
    Case(f"{MODULE}:Disk", (DeviceId.BLOCK,)),
    Case(f"{MODULE}:ByMethod", (DeviceId.CONSOLE,)),
]

ITS_OPTIONS = [
    *(Case(f"{DISK} --queue-size {size}", (DeviceId.BLOCK,)) for size in (4, 1024)),
    *(Case(f"{DISK} {option}", (DeviceId.BLOCK,)) for option in ("--num-queues 256", "--read-only")),
    Case("examples.scripted_rng:ScriptedRng", (DeviceId.RNG,)),
    Case("examples.numbered_disk:NumberedDisk", (DeviceId.BLOCK,)),
    Case(f"{I2C} --socket-count 2", (DeviceId.I2C_ADAPTER,), guests=2),
    Case("input --keyboard --tablet --mouse", (DeviceId.INPUT,) * 3),
    Case("net --switch --socket-count 3 --mac 52:54:00:00:00:01 --mtu 9000", (DeviceId.NET,), guests=3),
    Case(VMS, (DeviceId.VSOCK,), guests=2),
    Case("console --port a=none --max-ports 127", (DeviceId.CONSOLE,)),
    *(Case(f"{MODULE}:{name}", (DeviceId.CONSOLE,)) for name in ("ByObject --queues 5", "Without")),
    Case(f"{MODULE}:ByMethod --without CONFIG", (DeviceId.CONSOLE,)),
    Case(f"{MODULE}:Files", (DeviceId.FS,)),
    Case(f"{MODULE}:Sound", (DeviceId.SOUND,)),
]

IOMMU = [replace(case, argv=f"{case.argv} --iommu") for case in EACH_TYPE]


async def printed(*argv: str) -> list[str]:
    """Return what a device's command line prints for the tests' QEMU, as words."""
    argv += ("--print-qemu-args", "--qemu", shlex.join(qemu_command()))
    result = await trio.run_process([*argv], capture_stdout=True)
    (line,) = result.stdout.decode().splitlines()
    return shlex.split(line)


def printed_lines(argv: Sequence[str]) -> list[list[str]]:
    """Return each line as words, without the half a second that a program takes to start."""
    name, *rest = argv[argv.index("run") + 1 :]
    device = find(name)
    options = parse_options(device, "test", [*rest, "--qemu", shlex.join(qemu_command())])
    return [shlex.split(line) for line in device.qemu_args(options).splitlines()]


def command_of(case: Case, directory: Path, option: str = "--socket-path") -> list[str]:
    """Return the command line of a case, with its socket and its disk in `directory`."""
    (directory / "disk").write_bytes(CONTENT)
    words = shlex.split(case.argv.format(directory))
    return command(*words, *([] if "--vm" in words else [option, str(directory / "s")]))


@cache
def this_qemu() -> Qemu:
    return ask(shlex.join(qemu_command()))


@pytest.fixture(autouse=True)
def only_what_this_qemu_has(request: pytest.FixtureRequest, directory: Path) -> None:
    """Leave a case out; not in the test itself, as pytest-trio loses the reason then."""
    of = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    argv = command_of(of["case"], directory) if "case" in of else []
    if "name" in of:
        argv = command(f"{MODULE}:{of['name']}", "-s", str(directory / "s"))
    for line in printed_lines(argv) if argv else ():
        skip_what_this_qemu_has_not(line)


def skip_what_this_qemu_has_not(line: list[str]) -> None:
    qemu = this_qemu()
    models = {word.partition(",")[0] for word in line if word.startswith(("vhost-user-", "virtio-"))}
    if missing := models - qemu.models:
        pytest.skip(f"{qemu.name} has no {', '.join(missing)}")
    if "vhost-user-input-pci" in models and qemu.version.startswith("7."):
        pytest.skip(f"{qemu.name} attaches input with KVM only")


@pytest.mark.extended
@pytest.mark.parametrize("case", [*EACH_TYPE, *ITS_OPTIONS, *IOMMU], ids=str)
async def test_qemu_starts_with_what_is_printed(directory: Path, case: Case) -> None:
    argv = command_of(case, directory)
    async with start_program(directory, argv, "backend"):
        lines = printed_lines(argv)
        assert len(lines) == case.guests
        for line in lines:
            iommu = "--iommu" in argv
            async with start_machine(directory, *GUESTS_IOMMU * iommu, *line, memory=()) as machine:
                for number, kind in enumerate(case.types):
                    guest = await probe(machine, kind, number=number)
                    assert bool(await guest.offered() & ACCESS_PLATFORM) == iommu


@pytest.mark.extended
@pytest.mark.parametrize("case", [case for case in EACH_TYPE if case.guests == 1], ids=str)
async def test_qemu_starts_with_what_a_client_prints(directory: Path, case: Case) -> None:
    argv = command_of(case, directory, "--connect")
    (line,) = printed_lines(argv)
    async with (
        start_program(directory, argv, "backend"),
        start_machine(directory, *line, memory=()) as machine,
    ):
        await probe(machine, *case.types)


@pytest.mark.parametrize("name", ["ByMethod", "ByObject"])
async def test_configuration_space_is_as_long_as_it_is(directory: Path, name: str) -> None:
    argv = command(f"{MODULE}:{name}", "-s", str(directory / "s"))
    async with start_program(directory, argv, "backend"):
        line = await printed(*argv)
        async with start_machine(directory, *line, memory=()) as machine:
            guest = await probe(machine, DeviceId.CONSOLE)
            content = await config(guest, 0, len(own_devices.CONTENT))
            assert content.to_bytes(len(own_devices.CONTENT), "little") == own_devices.CONTENT


async def test_disk_connects_again_after_its_back_end_ended(directory: Path) -> None:
    argv = command_of(Case(DISK, (DeviceId.BLOCK,)), directory)
    line = await printed(*argv)
    async with (
        start_program(directory, argv, "first") as first,
        start_machine(directory, *line, memory=()),
    ):
        first.kill()
        await first.wait()
        async with start_program(directory, argv, "second") as second:
            await until_printed(second, "a front-end is connected")


async def reads_random_bytes(machine: Machine, features: int = 0) -> bool:
    guest = await probe(machine, RNG)
    await guest.negotiate(features)
    queue = await guest.set_up_queue()
    await guest.start()
    return any((await queue.request([], [64]))[0])


async def test_rng_at_a_path_that_needs_quotes(directory: Path) -> None:
    async with start_backend(directory, "rng", name=ODD_NAME) as backend:
        arguments = await printed(*command("rng", "-s", str(backend.socket)))
        async with start_machine(directory, *arguments, memory=()) as machine:
            assert await reads_random_bytes(machine)


async def test_rng_behind_the_guests_iommu(directory: Path) -> None:
    async with start_backend(directory, "rng", "--iommu") as backend:
        arguments = await printed(*command("rng", "--iommu", "-s", str(backend.socket)))
        iommu = ("-device", "intel-iommu,intremap=off,device-iotlb=on")
        async with start_machine(directory, *iommu, *arguments, memory=()) as machine:
            guest = await probe(machine, RNG)
            assert await guest.offered() & ACCESS_PLATFORM
            assert await reads_random_bytes(machine, ACCESS_PLATFORM)


async def test_rng_that_connects_to_qemu(directory: Path) -> None:
    argv = command("rng", "--connect", str(directory / ODD_NAME))
    async with (
        start_program(directory, argv, "rng"),
        start_machine(directory, *await printed(*argv), memory=()) as machine,
    ):
        assert await reads_random_bytes(machine)


async def test_disk_with_the_queues_that_it_was_given(directory: Path) -> None:
    (directory / "disk").write_bytes(CONTENT)
    options = ("-b", str(directory / "disk"), "--num-queues", "3", "--queue-size", "32")
    async with start_backend(directory, "blk", *options) as backend:
        arguments = await printed(*command("blk", "-s", str(backend.socket), *options))
        async with start_machine(directory, *arguments, memory=()) as machine:
            guest = await probe(machine, BLOCK)
            await guest.negotiate(MQ)
            # What QEMU was told: Debian 13's gives every queue 1024 entries all the same.
            device = "/machine/peripheral-anon/device[0]"
            assert await machine.qmp.execute("qom-get", path=device, property="queue-size") == 32
            queues = [await guest.set_up_queue(index, size=32) for index in range(3)]
            await guest.start()
            assert await config(guest, NUM_QUEUES, 2) == 3
            for queue in queues:
                assert await read(queue, queue.index, 512) == CONTENT[queue.index * 512 :][:512]


async def test_network_card_with_its_address_mtu_and_queues(directory: Path, net: Namespace) -> None:
    options = ("--tap", "tap0", "--netns", net.name, "--queues", "2", "--mtu", "2000")
    async with start_backend(directory, "net", *options) as backend:
        arguments = await printed(*command("net", "-s", str(backend.socket), *options))
        async with start_machine(directory, *arguments, memory=()) as machine:
            guest = await probe(machine, NET)
            await guest.negotiate(NetFeature.MAC | NetFeature.MTU | NetFeature.MQ | NetFeature.CTRL_VQ)
            address = (await config(guest, 0, 6)).to_bytes(6, "little").hex(":")
            assert arguments[-1].endswith(f",mac={address}")
            assert (await config(guest, 8, 2), await config(guest, 10, 2)) == (2, 2000)
