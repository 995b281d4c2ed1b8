"""fio verifies our disks in Linux: kinds of queues and caches, and a killed back-end."""

from __future__ import annotations

import random
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from tests.guest.test_vhost_user import (
    EVENT_IDX,
    MIB,
    PACKED,
    content,
    disk_arguments,
    disk_command,
    features,
)
from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend, start_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.programs.process import Program

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
@pytest.mark.parametrize(
    "disks",
    [
        pytest.param(RINGS, id="rings"),
        pytest.param(CACHES, id="queues and caches", marks=pytest.mark.extended),
    ],
)
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
        guest = await stack.enter_async_context(rig.boot(*devices, shared=True, tools=("fio",)))
        await guest.sh("modprobe virtio_blk")
        for number, disk in enumerate(disks):
            await verify(guest, f"vd{'abcd'[number]}", disk)
            on_host = content(directory / f"image{number}")
            assert misplaced(on_host, WRITTEN) == []
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


def misplaced(disk: bytes, size: int) -> list[int]:
    """Return where, among the first `size` bytes of `disk`, there is not what fio wrote there."""
    places = []
    for place in range(0, size, INTERVAL):
        magic, _, length, _, offset = HEADER.unpack_from(disk, place)
        if (magic, length, offset) != (HEADER_MAGIC, INTERVAL, place):
            places.append(place)
    return places


LATE = ("--fault", "any:lba=0-4095:latency=10ms", "--fault", "any:latency=2ms")
"""So some requests are in flight whenever the back-end is killed, and others have overtaken them."""
SLOW = slice(1 * MIB, 2 * MIB)
"""Where one of the four jobs writes, which has the longer latency."""
WRITERS = 2
LIVES = 3
LOAD_SECONDS = 300
LOAD = f"""
writer() {{
    pass=0
    until [ -e /tmp/stop ]; do
        pass=$((pass + 1))
        fio --name=writer --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8 --numjobs=2 \
            --rw=randwrite --bsrange=4k-16k --blockalign=4k --randseed=$((pass * {WRITERS} + $1)) \
            --offset=$((1 + $1 * 2))m --offset_increment=1m --size=1m \
            --verify=crc32c --verify_interval={INTERVAL} --verify_fatal=1 --output=/tmp/$1 || return 1
        echo done
    done
}}
(read -r line <&1; touch /tmp/stop) &
writers=
for number in $(seq 0 {WRITERS - 1}); do
    writer $number &
    writers="$writers $!"
done
for writer in $writers; do
    wait $writer || exit 1
done
sync
"""
"""Each writes its own two mebibytes of the disk again and again, and verifies them; the first one stays.

A line ends it, when they have finished what they are at: however fast it is, it goes on until all are killed.
"""


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["off", pytest.param("on", marks=pytest.mark.extended)])
async def test_back_end_is_killed_under_load(directory: Path, packed: str) -> None:
    image = directory / "image"
    original = random.Random(3).randbytes(8 * MIB)
    image.write_bytes(original)
    arguments = disk_arguments(image, properties=f",packed={packed}", chardev=",reconnect=1")
    async with life(image, 0) as first, rig.boot(*arguments, shared=True, tools=("fio",)) as guest:
        await guest.sh("modprobe virtio_blk")
        load = await guest.start(LOAD)
        with trio.fail_after(LOAD_SECONDS):
            await kill_amid_writes(image, first)
            for number in range(1, LIVES):
                async with life(image, number) as program:
                    await kill_amid_writes(image, program)
            async with life(image, LIVES):
                await load.tell("stop")
                done = (await load.finish()).split()
                assert done == ["done"] * len(done)
                assert len(done) >= WRITERS
                assert "error" not in await guest.sh("dmesg | grep -E 'vda|virtio' || true")
    on_host = content(image)
    end_of_load = (1 + WRITERS * 2) * MIB
    assert [place for place in misplaced(on_host, end_of_load) if place >= MIB] == []
    assert on_host[:MIB] == original[:MIB]
    assert on_host[end_of_load:] == original[end_of_load:]


@asynccontextmanager
async def life(image: Path, number: int) -> AsyncIterator[Program]:
    """Run the back-end, each time on the same socket and the same file."""
    async with start_program(image.parent, disk_command(image, *LATE), f"life{number}") as program:
        yield program


async def kill_amid_writes(image: Path, program: Program) -> None:
    """Kill the back-end when the slow job has written some of its blocks, and is to write many more."""
    before = content(image)[SLOW]
    while changed_blocks(before, content(image)[SLOW]) < 24:  # noqa: ASYNC110 - a file raises no event
        await trio.sleep(0.002)
    program.kill()
    await program.wait()


def changed_blocks(before: bytes, now: bytes) -> int:
    places = range(0, len(before), INTERVAL)
    return sum(before[place : place + INTERVAL] != now[place : place + INTERVAL] for place in places)
