"""fio writes and verifies our disks in a real Linux, with each kind of queue and each way to cache."""

from __future__ import annotations

import random
import struct
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.guest.test_vhost_user import EVENT_IDX, MIB, PACKED, content, features
from tests.rig import guest as rig
from tests.rig.backend import start_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

DISK_SIZE = 17 * MIB
WRITTEN = 12 * MIB
"""So much from the beginning is written once; the next four mebibytes in places, the last one never."""
INTERVAL = 4096
HEADER = struct.Struct("<HHIQQ")
"""What fio writes before each INTERVAL of data: magic, kind, length, seed, and where on the disk it is."""
HEADER_MAGIC = 0xACCA

JOBS = f"""
[global]
filename=/dev/$disk
direct=1
iodepth=16
verify=crc32c
verify_interval={INTERVAL}
verify_fatal=1
group_reporting
[random]
ioengine=libaio
rw=randwrite
bsrange=4k-64k
blockalign=4k
numjobs=2
size=4m
offset_increment=4m
[sequential]
ioengine=io_uring
rw=write
bs=256k
size=4m
offset=8m
[mixed]
ioengine=libaio
rw=randrw
bs=8k
numjobs=2
size=2m
offset=12m
offset_increment=2m
"""


@dataclass(frozen=True)
class Disk:
    """A back-end with `options`, the QEMU device in front of it, and what Linux is told to do with it."""

    packed: bool
    event_idx: bool
    queues: int = 1
    options: tuple[str, ...] = ()
    cache_type: str = "write back"

    def device(self, name: str) -> str:
        """Return the QEMU device for the chardev `name`."""
        bits = f"packed={'on' if self.packed else 'off'},event_idx={'on' if self.event_idx else 'off'}"
        return f"vhost-user-blk-pci,chardev={name},{bits},num-queues={self.queues}"


RINGS = [Disk(packed=packed, event_idx=event_idx) for packed in (False, True) for event_idx in (False, True)]
CACHES = [
    Disk(packed=False, event_idx=True, queues=2, options=("--num-queues", "2", "--cache", "none")),
    Disk(packed=True, event_idx=True, queues=2, options=("--num-queues", "2", "--cache", "none")),
    Disk(packed=True, event_idx=True, queues=2, options=("--num-queues", "2"), cache_type="write through"),
]


@pytest.mark.slow
@pytest.mark.parametrize("disks", [RINGS, CACHES], ids=["rings", "queues and caches"])
async def test_fio_finds_what_it_wrote(directory: Path, disks: list[Disk]) -> None:
    original = random.Random(2).randbytes(DISK_SIZE)
    devices = ["-smp", "2"]
    async with AsyncExitStack() as stack:
        for number, disk in enumerate(disks):
            image = directory / f"image{number}"
            image.write_bytes(original)
            options = ("--blk-file", str(image), *disk.options)
            backend = await stack.enter_async_context(
                start_backend(directory, "blk", *options, name=f"disk{number}")
            )
            devices += [*backend.chardev(f"disk{number}"), "-device", disk.device(f"disk{number}")]
        guest = await stack.enter_async_context(rig.boot(*devices, shared=True, with_fio=True))
        await guest.sh("modprobe virtio_blk")
        for number, disk in enumerate(disks):
            await verify(guest, f"vd{'abcd'[number]}", disk)
            on_host = content(directory / f"image{number}")
            assert {
                place for place in range(0, WRITTEN, INTERVAL) if not is_in_place(on_host, place)
            } == set()
            assert on_host[16 * MIB :] == original[16 * MIB :]


async def verify(guest: rig.Guest, name: str, disk: Disk) -> None:
    """Let fio write the guest's disk `name` and read it back; see that it is the disk that is meant."""
    sysfs = f"/sys/block/{name}"
    turned_on = await features(guest, f"{sysfs}/device")
    assert (PACKED in turned_on, EVENT_IDX in turned_on) == (disk.packed, disk.event_idx)
    assert len((await guest.sh(f"ls {sysfs}/mq")).split()) == disk.queues
    await guest.sh(f"echo '{disk.cache_type}' >{sysfs}/cache_type")
    assert await guest.sh(f"cat {sysfs}/queue/write_cache") == disk.cache_type
    await guest.sh(f"disk={name}; cat >/tmp/jobs <<END\n{JOBS}END\nfio --output-format=terse /tmp/jobs")


def is_in_place(disk: bytes, place: int) -> bool:
    """Tell whether the data at `place` is what fio wrote there."""
    magic, _, length, _, offset = HEADER.unpack_from(disk, place)
    return (magic, length, offset) == (HEADER_MAGIC, INTERVAL, place)
