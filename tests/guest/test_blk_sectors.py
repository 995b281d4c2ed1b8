"""A partitioned disk of ours in Linux: the same sectors in each cache mode."""

from __future__ import annotations

import hashlib
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import command, start_program
from tests.vhost_user.devices.blk import mounts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.guest

SECTOR = 512
START, COUNT = 2048, 30721
"""The partition, an odd number of sectors."""
DISK_SIZE = (START + COUNT) * SECTOR
PARTITION = "/dev/vda1"
MOUNT = f"modprobe -a virtio_blk crc32c_generic ext4 && mkdir -p /tmp/disk && mount {PARTITION} /tmp/disk"


def partitioned(path: Path) -> Path:
    """Make a disk with one partition, as an MBR has it: in sectors of 512 bytes."""
    entry = struct.pack("<B3xB3xII", 0, 0x83, START, COUNT)
    with path.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.truncate(DISK_SIZE)
    return path


@asynccontextmanager
async def guest_with_disk(
    image: Path, *options: str, tools: tuple[str, ...] = ()
) -> AsyncIterator[rig.Guest]:
    socket = image.with_name("disk.sock")
    argv = command("blk", "--socket-path", str(socket), "--blk-file", str(image), *options)
    device = ["-chardev", f"socket,id=disk,path={socket}", "-device", "vhost-user-blk-pci,chardev=disk"]
    async with (
        start_program(image.parent, argv, "disk"),
        rig.boot(*device, shared=True, tools=tools) as guest,
    ):
        yield guest


def digest_of_partition(image: Path) -> str:
    return hashlib.sha256(image.read_bytes()[START * SECTOR :]).hexdigest()


@pytest.mark.extended
async def test_partition_is_where_it_was_made_whatever_the_cache_mode(directory: Path) -> None:
    """Made through the page cache, then used around it on a host that needs 4096 bytes, then as before."""
    with mounts.ext4(directory) as point:
        image = partitioned(point / "disk")
        async with guest_with_disk(image) as guest:
            await guest.sh("modprobe virtio_blk")
            assert await guest.sh("cat /sys/block/vda/vda1/start") == str(START)
            await guest.sh(f"mke2fs -F {PARTITION} >/dev/null && {MOUNT}")
            await guest.sh("head -c 3145728 /dev/urandom >/tmp/disk/data && sync")
            made = await guest.sh("sha256sum /tmp/disk/data")
            await guest.sh("umount /tmp/disk")
        async with guest_with_disk(image, "--cache", "none") as guest:
            await guest.sh(MOUNT)
            assert await guest.sh("cat /sys/block/vda/queue/logical_block_size") == str(SECTOR)
            assert await guest.sh("sha256sum /tmp/disk/data") == made
            await guest.sh("cp /tmp/disk/data /tmp/disk/more && umount /tmp/disk")
            # The last sector is beyond the last whole block of the host; nobody else uses it.
            await guest.sh(f"dd if=/dev/urandom of={PARTITION} bs=512 seek={COUNT - 1} count=1 oflag=direct")
            read = f"dd if={PARTITION} bs=512 iflag=direct status=none"
            seen = (await guest.sh(f"{read} | sha256sum")).split()[0]
            assert seen == digest_of_partition(image)
        assert image.stat().st_size == DISK_SIZE
        async with guest_with_disk(image) as guest:
            await guest.sh(MOUNT)
            assert (await guest.sh("sha256sum </tmp/disk/more")).split()[0] == made.split()[0]


FIO = """
[parts]
filename=/dev/vda
direct=1
ioengine=libaio
iodepth=32
rw=randwrite
bsrange=512-8k
blockalign=512
size=1m
verify=crc32c
verify_interval=512
verify_fatal=1
"""
"""Writes each sector once, so that dozens of writes share a block of the host while they are under way."""


@pytest.mark.extended
async def test_fio_finds_what_it_wrote_in_parts_of_the_host_s_blocks(directory: Path) -> None:
    with mounts.ext4(directory) as point:
        image = point / "disk"
        with image.open("wb") as file:
            file.truncate(1 << 20)
        async with guest_with_disk(image, "--cache", "none", tools=("fio",)) as guest:
            await guest.sh("modprobe virtio_blk")
            await guest.sh(f"cat >/tmp/jobs <<END\n{FIO}END\nfio --output-format=terse /tmp/jobs")
            seen = (await guest.sh("dd if=/dev/vda bs=64k iflag=direct status=none | sha256sum")).split()[0]
            assert seen == hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.mark.extended
async def test_disk_with_large_sectors_says_so_and_works(directory: Path) -> None:
    image = directory / "disk"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    async with guest_with_disk(image, "--logical-block-size", "4096") as guest:
        mount = MOUNT.replace(PARTITION, "/dev/vda")
        await guest.sh("modprobe virtio_blk")
        assert await guest.sh("cat /sys/block/vda/queue/logical_block_size") == "4096"
        await guest.sh(f"mke2fs -F -b 4096 /dev/vda >/dev/null && {mount}")
        await guest.sh("head -c 3145728 /dev/urandom >/tmp/disk/data && sync && umount /tmp/disk")
        assert int(await guest.sh("blockdev --getsize64 /dev/vda")) == 16 << 20
