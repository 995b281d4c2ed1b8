"""The options of vhost-user-blk; the back-end conventions name some of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.virtio.blk import ID_SIZE, SECTOR_SIZE
from protocol.virtio.split import MAX_SIZE, is_power_of_two
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.blk.device import DEFAULT_QUEUE_SIZE, DEFAULT_QUEUES, Blk
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.faults import SYNTAX, FaultFile, parse_fault
from vhost_user.devices.blk.locking import ImageLock
from vhost_user.devices.blk.sizes import PAGE_SIZE, checked_block_size

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from vhost_user.devices.blk.file import FileDisk

MAX_QUEUES = 256


class BlkProgram(DeviceProgram):
    """vhost-user-blk."""

    device = Blk
    capabilities = ("blk-file", "read-only")

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add `--blk-file` and the others."""
        add_options(parser)

    def make(self, options: argparse.Namespace) -> list[Blk]:
        """Open the disk that the command line describes. Raises UserError."""
        file = fault_file_from(options)
        faults = options.fault if file is None else file.read()
        disk = disk_from(options)
        try:
            lock = lock_from(options, disk)
        except UserError:
            disk.close()
            raise
        device = self.device(
            disk,
            num_queues=options.num_queues,
            queue_size=options.queue_size,
            serial=options.serial,
            faults=faults,
            fault_file=file,
            lock=lock,
        )
        return [device]

    def qemu_device(self, options: argparse.Namespace) -> str:
        """Return the QEMU device with its properties."""
        queues = f",num-queues={options.num_queues}" if options.num_queues else ""
        return f"{self.qemu_model()}{queues},queue-size={options.queue_size}"

    def libvirt_element(self, options: argparse.Namespace) -> Element | None:
        """Return libvirt's <disk>; None with --connect."""
        from vhost_user.device_program.libvirt import disk

        return disk(options, {"queues": options.num_queues, "queue_size": options.queue_size})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vhost-user-blk."""
    parser.add_argument(
        "-b", "--blk-file", required=True, metavar="PATH", help="the disk: a raw file or a block device"
    )
    parser.add_argument(
        "--format",
        type=_format,
        metavar="raw",
        help="serve the file byte by byte, even if it looks like a qcow2 image, a LUKS volume or the like"
        " (default: refuse such a file)",
    )
    parser.add_argument("-r", "--read-only", action="store_true", help="let the guest only read the disk")
    parser.add_argument(
        "--num-queues",
        type=whole_number(1, MAX_QUEUES),
        metavar="N",
        help="number of queues that a guest may use (default: one for each processor, at most"
        f" {DEFAULT_QUEUES})",
    )
    parser.add_argument(
        "--queue-size",
        type=_queue_size,
        default=DEFAULT_QUEUE_SIZE,
        metavar="N",
        help="number of entries of each queue; give QEMU the same number (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        choices=("none", "writeback"),
        default="writeback",
        help="none: bypass the host's page cache, with O_DIRECT (default: %(default)s)",
    )
    parser.add_argument(
        "--logical-block-size",
        type=parsed_by(_block_size),
        metavar="BYTES",
        help=f"the disk's sector size, {SECTOR_SIZE} to {PAGE_SIZE}"
        f" (default: {SECTOR_SIZE} for a file, its own for a block device)",
    )
    parser.add_argument(
        "--serial",
        type=_serial,
        metavar="TEXT",
        help=f"the disk's serial number, at most {ID_SIZE} characters (default: one for each file or device)",
    )
    parser.add_argument(
        "--locking",
        choices=("auto", "on", "off"),
        default="auto",
        help="lock the file against other programs, as QEMU does; auto: where its filesystem can"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--incoming",
        action="store_true",
        help="wait for a guest that is migrated here: lock the file when it arrives, not at once",
    )
    _add_fault_options(parser)


def lock_from(options: argparse.Namespace, disk: FileDisk) -> ImageLock | None:
    """Return the lock of a disk, taken now unless a guest is migrated here (--incoming). Raises UserError."""
    if options.locking == "off":
        return None
    lock = ImageLock(disk, options.blk_file, read_only=options.read_only, insist=options.locking == "on")
    if not options.incoming:
        lock.take()
    return lock


def disk_from(options: argparse.Namespace) -> FileDisk:
    """Open the disk that a command line names. The caller closes it. Raises UserError."""
    return open_disk(
        options.blk_file,
        read_only=options.read_only,
        direct=options.cache == "none",
        raw=options.format is not None,
        logical_block_size=options.logical_block_size,
    )


def fault_file_from(options: argparse.Namespace) -> FaultFile | None:
    """Return the file of faults that a command line names, or None."""
    return None if options.fault_file is None else FaultFile(options.fault_file)


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--fault",
        type=parsed_by(parse_fault),
        action="append",
        default=[],
        metavar="RULE",
        help=f"a fault to simulate: {SYNTAX} (may be repeated; the first rule that matches applies)",
    )
    either.add_argument(
        "--fault-file",
        metavar="PATH",
        help="a file of such rules, one on a line, that may change at any time",
    )


def _format(text: str) -> str:
    if text != "raw":
        raise argparse.ArgumentTypeError(
            f"'{text}' cannot be served, only raw can; convert it with qemu-img convert -O raw"
        )
    return text


def _queue_size(text: str) -> int:
    if not text.isdecimal() or not 4 <= int(text) <= MAX_SIZE or not is_power_of_two(int(text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a power of two from 4 to {MAX_SIZE}")
    return int(text)


def _block_size(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"'{text}' is not a number of bytes")
    return checked_block_size(int(text))


def _serial(text: str) -> str:
    if not text.isascii() or not text.isprintable() or len(text) > ID_SIZE:
        raise argparse.ArgumentTypeError(f"'{text}' is not a text of at most {ID_SIZE} ASCII characters")
    return text
