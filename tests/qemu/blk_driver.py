"""A block device as the tests drive it: a back-end on a file, a QEMU, requests of its guest.

Numbers are those of virtio 1.3, section 5.2, not taken from the product.
"""

from __future__ import annotations

import random
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.qemu.virtio_pci import EVENT_IDX, INDIRECT_DESC, RING_PACKED, Queue, VirtioPci, probe
from tests.rig.programs.backend import RunningBackend, start_backend
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.rig.qemu.qemu import Machine

BLK = "vhost_user.devices.blk:Blk"
BLOCK = 2

RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES = (
    1 << bit for bit in (5, 6, 9, 10, 11, 12, 13, 14)
)
IN, OUT, FLUSH_COMMAND, GET_ID, DISCARD_COMMAND, WRITE_ZEROES_COMMAND = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"
CAPACITY, SEG_MAX, BLK_SIZE_FIELD, TOPOLOGY_FIELD, WRITEBACK, NUM_QUEUES = 0, 12, 20, 24, 32, 34

SECTORS = 2048
CONTENT = random.Random(1).randbytes(SECTORS * 512)


@dataclass(frozen=True)
class Setup:
    """A QEMU, its disk as the driver sees it, the back-end, and the file below it all."""

    machine: Machine
    guest: VirtioPci
    backend: RunningBackend
    image: Path


@asynccontextmanager
async def start(
    directory: Path,
    *options: str,
    properties: str = "",
    chardev: str = "",
    msix: bool = True,
    machine: Sequence[str] = (),
) -> AsyncIterator[Setup]:
    """Run a back-end on a file with CONTENT, and a QEMU with that disk and the arguments `machine`."""
    image = directory / "disk"
    image.write_bytes(CONTENT)
    async with (
        start_backend(directory, BLK, "--blk-file", str(image), *options) as backend,
        start_machine(
            directory,
            *backend.chardev(extra=chardev),
            *("-device", f"vhost-user-blk-pci,chardev=backend{properties}"),
            *machine,
        ) as running,
    ):
        yield Setup(running, await probe(running, BLOCK, msix=msix), backend, image)


async def ready(
    guest: VirtioPci, wanted: int = FLUSH | DISCARD | WRITE_ZEROES | INDIRECT_DESC | EVENT_IDX
) -> Queue:
    """Negotiate, set up the first queue, and start."""
    await guest.negotiate(wanted)
    if guest.features & RING_PACKED:
        queue: Queue = await guest.set_up_packed_queue()
    else:
        queue = await guest.set_up_queue()
    await guest.start()
    return queue


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


async def read(queue: Queue, sector: int, size: int) -> bytes:
    data, status = await queue.request([header(IN, sector)], [size, 1])
    assert status == OK
    return data


async def write(queue: Queue, sector: int, data: bytes) -> bytes:
    (status,) = await queue.request([header(OUT, sector), data], [1])
    return status


async def config(guest: VirtioPci, offset: int, size: int) -> int:
    return int.from_bytes(await guest.config(offset, size), "little")
