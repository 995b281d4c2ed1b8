"""Our blk as the disk of User Mode Linux, at native speed and with in-band notifications."""

from __future__ import annotations

import hashlib
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.guest.guest import CommandError
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.uml

MIB = 1 << 20
DISK_SIZE = 16 * MIB + 512
WRITTEN = 6 * MIB
ORIGINAL = random.Random(1).randbytes(DISK_SIZE)

FIO_SECONDS = 120

KINDS: dict[str, tuple[str, ...]] = {
    "vda": (),
    "vdb": ("--without", "EVENT_IDX"),
    "vdc": ("--without", "INDIRECT_DESC"),
    "vdd": ("--without", "INBAND_NOTIFICATIONS"),
}
"""Disks of one guest by their names in Linux: options that make their queues different."""

FIO = """
[global]
filename=/dev/$disk
direct=1
verify=crc32c
verify_fatal=1
randseed=7
group_reporting
[random]
ioengine=libaio
iodepth=32
rw=randwrite
bsrange=4k-64k
blockalign=4k
numjobs=2
size=2m
offset_increment=2m
[uring]
ioengine=io_uring
iodepth=16
rw=randwrite
bs=4k
size=1m
offset=4m
[mixed]
ioengine=libaio
iodepth=8
rw=randrw
rwmixread=30
bs=8k
size=1m
offset=5m
"""
"""Four jobs at a time that write and read back the first WRITTEN bytes, the last mebibyte in places."""


@asynccontextmanager
async def guest_with_disks(
    directory: Path, kinds: dict[str, tuple[str, ...]]
) -> AsyncIterator[tuple[uml.Guest, dict[str, Path]]]:
    """Boot a guest with a disk of each kind; yield it and the disks' files."""
    async with AsyncExitStack() as stack:
        images, devices = {}, []
        for name, options in kinds.items():
            image = images[name] = directory / name
            image.write_bytes(ORIGINAL)
            disk = ("--blk-file", str(image), "--serial", f"the-one-of-{name}", *uml.SUITED)
            running = start_backend(directory, "blk", *disk, *options, name=f"{name}-backend")
            backend = await stack.enter_async_context(running)
            devices.append(uml.device(backend.socket, DeviceId.BLOCK))
        yield await stack.enter_async_context(uml.boot(directory, *devices, tools=("fio",))), images


def content(file: Path) -> bytes:
    return file.read_bytes()


def blocks(file: Path) -> int:
    """Return how many blocks of 512 bytes a file takes up on the host."""
    return file.stat().st_blocks


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def digest_in_guest(guest: uml.Guest, path: str) -> str:
    """Return the SHA-256 of a file or a disk in the guest, read from the device."""
    await guest.sh("echo 3 >/proc/sys/vm/drop_caches")
    return (await guest.sh(f"sha256sum {path}")).split()[0]


async def test_disk_is_what_the_file_is(directory: Path) -> None:
    async with guest_with_disks(directory, KINDS) as (guest, images):
        for name, image in images.items():
            disk = f"/dev/{name}"
            assert int(await guest.sh(f"blockdev --getsize64 {disk}")) == DISK_SIZE
            assert await guest.sh(f"cat /sys/block/{name}/serial") == f"the-one-of-{name}"
            assert await digest_in_guest(guest, disk) == digest(ORIGINAL)

            await guest.sh(f"head -c {WRITTEN} /dev/urandom >/tmp/data")
            await guest.sh(f"dd if=/tmp/data of={disk} bs=64k seek=16 conv=notrunc,fsync")
            on_host = content(image)
            assert digest(on_host[MIB:][:WRITTEN]) == await digest_in_guest(guest, "/tmp/data")
            assert (on_host[:MIB], on_host[MIB + WRITTEN :]) == (ORIGINAL[:MIB], ORIGINAL[MIB + WRITTEN :])
            assert await digest_in_guest(guest, disk) == digest(on_host)


async def test_fio_finds_what_it_wrote(directory: Path) -> None:
    async with guest_with_disks(directory, KINDS) as (guest, images):
        for name, image in images.items():
            fio = f"disk={name}; cat >/tmp/jobs <<END\n{FIO}END\nfio --output-format=terse /tmp/jobs"
            await guest.sh(fio, seconds=FIO_SECONDS)
            on_host = content(image)
            places = range(0, WRITTEN - MIB, 4096)
            assert [at for at in places if on_host[at : at + 4096] == ORIGINAL[at : at + 4096]] == []
            assert on_host[WRITTEN:] == ORIGINAL[WRITTEN:]
            assert await digest_in_guest(guest, f"/dev/{name}") == digest(on_host)


async def test_discarded_blocks_are_free_on_the_host(directory: Path) -> None:
    async with guest_with_disks(directory, {"vda": ()}) as (guest, images):
        before = blocks(images["vda"])
        await guest.sh(f"blkdiscard -o {4 * MIB} -l {8 * MIB} /dev/vda")
        assert blocks(images["vda"]) <= before - 8 * MIB // 512
        on_host = content(images["vda"])
        assert on_host == ORIGINAL[: 4 * MIB] + bytes(8 * MIB) + ORIGINAL[12 * MIB :]
        assert await digest_in_guest(guest, "/dev/vda") == digest(on_host)


async def test_read_only_disk_refuses_writes(directory: Path) -> None:
    async with guest_with_disks(directory, {"vda": ("--read-only",)}) as (guest, images):
        assert await guest.sh("cat /sys/block/vda/ro") == "1"
        with pytest.raises(CommandError):
            await guest.sh("dd if=/dev/zero of=/dev/vda bs=512 count=1 conv=notrunc,fsync")
        assert content(images["vda"]) == ORIGINAL


async def test_one_of_four_queues_suffices(directory: Path) -> None:
    """User Mode Linux has one CPU, for which its driver sets up one queue; the others never start."""
    async with guest_with_disks(directory, {"vda": ("--num-queues", "4")}) as (guest, _):
        assert (await guest.sh("ls /sys/block/vda/mq")).split() == ["0"]
        assert await digest_in_guest(guest, "/dev/vda") == digest(ORIGINAL)


async def test_file_system(directory: Path) -> None:
    async with guest_with_disks(directory, {"vda": ()}) as (guest, _):
        mount = "mount -t ext2 /dev/vda /tmp/disk"
        await guest.sh(f"mke2fs -F /dev/vda >/dev/null && mkdir /tmp/disk && {mount}")
        await guest.sh(f"head -c {4 * MIB} /dev/urandom >/tmp/disk/data")
        written = await digest_in_guest(guest, "/tmp/disk/data")
        await guest.sh(f"umount /tmp/disk && {mount}")
        assert await digest_in_guest(guest, "/tmp/disk/data") == written
