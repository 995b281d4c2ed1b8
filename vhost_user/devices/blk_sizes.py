"""In what sizes a disk likes its requests, and in which ones its host needs them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from protocol.virtio.blk import SECTOR_SIZE

PAGE_SIZE = 4096

# <linux/fs.h>
_BLKSSZGET = 0x1268
_BLKIOMIN = 0x1278
_BLKIOOPT = 0x1279
_BLKALIGNOFF = 0x127A
_BLKPBSZGET = 0x127B


@dataclass(frozen=True)
class BlockSizes:
    """In what sizes a disk likes its requests, all in bytes; zero where it does not care."""

    logical: int = SECTOR_SIZE
    physical: int = PAGE_SIZE
    minimum_io: int = 0
    optimal_io: int = 0
    alignment_offset: int = 0
    """From the start of the disk to the first physical block that is aligned."""


def device_block_sizes(fd: int) -> BlockSizes:
    """Return what a block device says of itself. Raises OSError."""

    def ask(request: int) -> int:
        value: int = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]
        return max(value, 0)

    return BlockSizes(*map(ask, (_BLKSSZGET, _BLKPBSZGET, _BLKIOMIN, _BLKIOOPT, _BLKALIGNOFF)))


def filesystem_block_size(status: os.stat_result) -> int:
    """Return the block size of the device under a file, to which O_DIRECT aligns; a page if unknown."""
    device = Path(f"/sys/dev/block/{os.major(status.st_dev)}:{os.minor(status.st_dev)}")
    for queue in (device / "queue", device.resolve().parent / "queue"):  # a partition has its disk's
        with contextlib.suppress(OSError, ValueError):
            return int((queue / "logical_block_size").read_text())
    return PAGE_SIZE
