r"""A disk of your own that is nowhere: each sector says which one it is, and the disk can grow meanwhile.

    python3 numbered_disk.py --socket-path /tmp/numbers.sock --sectors 2048 --grow 8

    qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \
        -chardev socket,path=/tmp/numbers.sock,id=disk -device vhost-user-blk-pci,chardev=disk,num-queues=1

In a Linux guest, `dd if=/dev/vda skip=7 count=1` prints "sector 7", and /sys/block/vda/size grows.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Self

import trio

import vhost_user
from vhost_user.program import run_device, whole_number

if TYPE_CHECKING:
    import argparse

SECTOR = 512
READ_ONLY = 1 << 5  # the feature VIRTIO_BLK_F_RO (virtio 1.3, section 5.2.3)
IN = 0  # the type of request that reads
OK, IO_ERROR, UNSUPPORTED = b"\0", b"\1", b"\2"
HEADER = struct.Struct("<IIQ")  # type, reserved, sector


class NumberedDisk(vhost_user.VirtioDevice):
    """A read-only disk whose sectors say their numbers."""

    device_id = vhost_user.DeviceId.BLOCK
    name = "numbered-disk"
    features = READ_ONLY

    def __init__(self, sectors: int = 2048, grow: int = 0) -> None:
        """Have so many sectors, and `grow` more each second while a front-end is connected."""
        self.sectors = sectors
        self.grow = grow

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add our options to those that every device has."""
        number = whole_number(0, 1 << 32)
        parser.add_argument("--sectors", type=number, default=2048, metavar="N", help="sectors to begin with")
        parser.add_argument("--grow", type=number, default=0, metavar="N", help="sectors more each second")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Return a disk as the command line describes it."""
        return cls(options.sectors, options.grow)

    def read_config(self, offset: int, size: int) -> bytes:
        """Return a part of the configuration space: it begins with the number of sectors."""
        return struct.pack("<Q", self.sectors)[offset : offset + size]

    async def run(self) -> None:
        """Grow, and tell the driver."""
        while self.grow:
            await trio.sleep(1)
            self.sectors += self.grow
            self.notify_config_changed()

    async def run_queue(self, queue: vhost_user.Virtqueue) -> None:
        """Answer requests; the driver is notified once for each batch."""
        async for batch in queue.requests(HEADER, room=len(OK)).batches():
            for chain, (kind, _, sector) in batch:
                self._answer(chain.writable, kind, sector)
                chain.complete()

    def _answer(self, room: vhost_user.Writable, kind: int, sector: int) -> None:
        """Fill a request with data and a status byte (section 5.2.6)."""
        count, rest = divmod(room.remaining - len(OK), SECTOR)
        if kind == IN and not rest and sector + count <= self.sectors:
            room.write(b"".join(b"sector %-504d\n" % number for number in range(sector, sector + count)))
            room.write(OK)
        else:
            room.advance(room.remaining - len(OK))  # the status is the last byte
            room.write(IO_ERROR if kind == IN else UNSUPPORTED)


if __name__ == "__main__":
    sys.exit(run_device(NumberedDisk, sys.argv[1:], "numbered_disk"))
