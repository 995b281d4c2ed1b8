"""What --print-qemu-args prints, taken by a shell's rules into the command line of a real QEMU."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.net import NetFeature
from tests.qemu.blk_driver import BLOCK, CONTENT, MQ, NUM_QUEUES, config, read
from tests.qemu.virtio_pci import ACCESS_PLATFORM, probe
from tests.rig.backend import command, start_backend, start_machine, start_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.netns import Namespace
    from tests.rig.qemu import Machine

pytestmark = pytest.mark.qemu

NET, RNG = 1, 4
ODD_NAME = "it's, a b=c"


async def printed(*argv: str) -> list[str]:
    """Return what a device's command line prints with --print-qemu-args, as words."""
    result = await trio.run_process([*argv, "--print-qemu-args"], capture_stdout=True)
    (line,) = result.stdout.decode().splitlines()
    return shlex.split(line)


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
