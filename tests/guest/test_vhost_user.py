"""Our vhost-user devices in a real Linux: random numbers, a disk, reboots."""

from __future__ import annotations

import hashlib
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import command, start_backend, start_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK_SIZE = 24 * MIB + 512
SERIAL = "a-disk-of-ours"
DISK = "/dev/vda"
SYSFS = "/sys/block/vda"
EVENT_IDX, PACKED = 29, 34


@pytest.fixture
def image(directory: Path) -> Path:
    """The disk's file on the host, full of random bytes."""
    path = directory / "image"
    path.write_bytes(random.Random(1).randbytes(DISK_SIZE))
    return path


def disk_command(image: Path, *options: str) -> list[str]:
    socket = image.with_name("disk.sock")
    return command("blk", *("--socket-path", str(socket), "--blk-file", str(image)), *options)


def disk_arguments(image: Path, *, properties: str = "", chardev: str = "") -> list[str]:
    socket = image.with_name("disk.sock")
    return [
        *("-chardev", f"socket,id=disk,path={socket}{chardev}"),
        *("-device", f"vhost-user-blk-pci,chardev=disk{properties}"),
    ]


@asynccontextmanager
async def guest_with_disk(
    image: Path, *options: str, properties: str = "", cpus: int = 1
) -> AsyncIterator[rig.Guest]:
    """Boot a guest whose /dev/vda is our blk with `options`."""
    async with start_program(image.parent, disk_command(image, "--serial", SERIAL, *options), "disk"):
        arguments = [*disk_arguments(image, properties=properties), "-smp", str(cpus)]
        async with rig.boot(*arguments, shared=True) as guest:
            await guest.sh("modprobe virtio_blk")
            yield guest


async def features(guest: rig.Guest, device: str) -> set[int]:
    """Return the feature bits that Linux turned on for the device at this path below /sys."""
    text = await guest.sh(f"cat {device}/features")
    return {bit for bit, value in enumerate(text) if value == "1"}


def content(file: Path) -> bytes:
    return file.read_bytes()


def blocks(file: Path) -> int:
    """Return how many blocks of 512 bytes a file takes up on the host."""
    return file.stat().st_blocks


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def digest_in_guest(guest: rig.Guest, path: str = DISK) -> str:
    """Return the SHA-256 of a file or a disk in the guest, read from the device."""
    await guest.sh("echo 3 >/proc/sys/vm/drop_caches")
    return (await guest.sh(f"sha256sum {path}")).split()[0]


@pytest.mark.parametrize("event_idx", ["on", pytest.param("off", marks=pytest.mark.extended)])
async def test_hwrng_gives_the_bytes_of_our_rng(directory: Path, event_idx: str) -> None:
    text = b"from our device\n"  # its length divides that of any request of Linux's driver
    source = directory / "numbers"
    source.write_bytes(text * 256)
    async with start_backend(directory, "rng", "-f", str(source)) as backend:
        device = ("-device", f"vhost-user-rng-pci,chardev=backend,event_idx={event_idx}")
        async with rig.boot(*backend.chardev(), *device, shared=True) as guest:
            await guest.sh("modprobe virtio_rng")
            current = await guest.sh("cat /sys/class/misc/hw_random/rng_current")
            assert current.startswith("virtio_rng")
            got = await guest.sh("head -c 4096 /dev/hwrng")
            assert got.encode() + b"\n" == text * 256


@pytest.mark.extended
async def test_hwrng_gives_different_bytes_also_after_a_reboot(directory: Path) -> None:
    read = "modprobe virtio_rng && head -c 1024 /dev/hwrng | sha256sum"
    async with start_backend(directory, "rng") as backend:
        device = ("-device", "vhost-user-rng-pci,chardev=backend")
        async with rig.boot(*backend.chardev(), *device, shared=True) as guest:
            seen = {await guest.sh(read) for _ in range(2)}
            await guest.reboot()
            seen |= {await guest.sh(read) for _ in range(2)}
            assert len(seen) == 4


@pytest.mark.parametrize("event_idx", [True, pytest.param(False, marks=pytest.mark.extended)])
@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.extended)])
async def test_disk_is_what_the_file_is(image: Path, *, packed: bool, event_idx: bool) -> None:
    properties = f",packed={'on' if packed else 'off'},event_idx={'on' if event_idx else 'off'}"
    async with guest_with_disk(image, properties=properties) as guest:
        turned_on = await features(guest, f"{SYSFS}/device")
        assert (PACKED in turned_on, EVENT_IDX in turned_on) == (packed, event_idx)
        assert int(await guest.sh(f"blockdev --getsize64 {DISK}")) == DISK_SIZE
        assert await guest.sh(f"cat {SYSFS}/serial") == SERIAL
        assert await digest_in_guest(guest) == digest(content(image))

        await guest.sh(f"head -c {8 * MIB} /dev/urandom >/tmp/data")
        await guest.sh(f"dd if=/tmp/data of={DISK} bs=64k seek=16 conv=notrunc,fsync")
        written = await digest_in_guest(guest, "/tmp/data")
        assert digest(content(image)[MIB : 9 * MIB]) == written
        assert await digest_in_guest(guest) == digest(content(image))


@pytest.mark.extended
async def test_disk_with_a_ring_that_its_requests_just_fit_into(image: Path) -> None:
    """QEMU 7.2 makes it as short as it is told; QEMU 10 takes 1024 entries nevertheless."""
    properties = ",queue-size=16,indirect_desc=off"
    async with guest_with_disk(image, "--queue-size", "16", properties=properties) as guest:
        assert await guest.sh(f"cat {SYSFS}/queue/max_segments") == "14"
        read = await guest.sh(f"dd if={DISK} bs=1M iflag=direct status=none | sha256sum")
        assert read.split()[0] == digest(content(image))


@pytest.mark.extended
async def test_each_cpu_has_a_queue(image: Path) -> None:
    options = ("--num-queues", "2")
    async with guest_with_disk(image, *options, properties=",num-queues=2", cpus=2) as guest:
        assert (await guest.sh(f"ls {SYSFS}/mq")).split() == ["0", "1"]
        copies = " & ".join(
            f"taskset {1 << cpu} dd if={DISK} bs=64k iflag=direct status=none skip={cpu * 128} count=128"
            f" | sha256sum >/tmp/{cpu}"
            for cpu in range(2)
        )
        await guest.sh(f"{copies} & wait")
        on_host = content(image)
        for cpu in range(2):
            got = (await guest.sh(f"cat /tmp/{cpu}")).split()[0]
            assert got == digest(on_host[cpu * 8 * MIB :][: 8 * MIB])


@pytest.mark.extended
async def test_discarded_blocks_are_free_on_the_host(image: Path) -> None:
    async with guest_with_disk(image) as guest:
        before = blocks(image)
        await guest.sh(f"blkdiscard -o {4 * MIB} -l {16 * MIB} {DISK}")
        assert blocks(image) <= before - 16 * MIB // 512
        on_host = content(image)
        assert on_host[4 * MIB : 20 * MIB] == bytes(16 * MIB)
        kept = random.Random(1).randbytes(DISK_SIZE)
        assert (on_host[: 4 * MIB], on_host[20 * MIB :]) == (kept[: 4 * MIB], kept[20 * MIB :])
        assert await digest_in_guest(guest) == digest(on_host)


@pytest.mark.extended
async def test_read_only_disk_refuses_writes(image: Path) -> None:
    async with guest_with_disk(image, "--read-only") as guest:
        assert await guest.sh(f"cat {SYSFS}/ro") == "1"
        with pytest.raises(rig.CommandError):
            await guest.sh(f"dd if=/dev/zero of={DISK} bs=512 count=1 conv=notrunc,fsync")
        assert content(image) == random.Random(1).randbytes(DISK_SIZE)


@pytest.mark.extended
async def test_file_system_survives_a_reboot_and_a_reset(image: Path) -> None:
    mount = f"modprobe -a virtio_blk crc32c_generic ext4 && mkdir -p /tmp/disk && mount {DISK} /tmp/disk"
    async with guest_with_disk(image) as guest:
        await guest.sh(f"mke2fs -F {DISK} >/dev/null && {mount}")
        await guest.sh(f"head -c {4 * MIB} /dev/urandom >/tmp/disk/data && sync")
        written = await digest_in_guest(guest, "/tmp/disk/data")
        for boot_again in (guest.reboot, guest.reset):
            await boot_again()
            await guest.sh(mount)
            assert await digest_in_guest(guest, "/tmp/disk/data") == written
            await guest.sh("echo more >>/tmp/disk/more && sync")
        assert await guest.sh("cat /tmp/disk/more") == "more\nmore"
