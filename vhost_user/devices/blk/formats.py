"""What a disk's file is, if not a raw disk: formats told by their first and last bytes.

A container that is served as if it were raw shows the guest its tables in the place of the disk, and the
guest's first write destroys them. Nothing is guessed the other way round: what is recognised is refused,
never opened as what it seems to be, because a guest may write any format's magic to its own raw disk.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

HEAD_SIZE = 4096
"""Bytes from a file's start that `recognise()` wants to see, where there are so many."""
TAIL_SIZE = 512
"""Bytes from its end."""


@dataclass(frozen=True)
class Format:
    """A format that is not a raw disk."""

    name: str
    """With its article."""
    command: str
    """What makes a raw disk of it, with {path} and {new}."""
    others: str = ""
    """Who can serve it as it is."""

    def complaint(self, path: str) -> str:
        """Say in one line that the file at `path` is not served, and what to do."""
        command = self.command.format(path=shlex.quote(path), new=shlex.quote(f"{Path(path).stem}-raw.img"))
        return (
            f"{path} is {self.name}, no raw disk, and a guest's writes would destroy it; make a raw disk of"
            f" it: {command}{self.others} (or give --format raw, if these very bytes are the disk, as where"
            " its guest wrote them)"
        )


def _image(name: str) -> Format:
    """Return a format of disk images that QEMU has a driver for."""
    return Format(
        name, "qemu-img convert -O raw {path} {new}", ", or have qemu-storage-daemon serve it as it is"
    )


_VHD = _image("a VHD image")
_VMDK = _image("a VMDK image")
_OVA = Format("an OVA archive of a virtual machine", "tar -xf {path} (then convert the disk that was in it)")

_BY_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    (0, b"QFI\xfb\0\0\0\x01", _image("a qcow image")),
    (0, b"QFI\xfb", _image("a qcow2 image")),
    (0, b"QED\0", _image("a QED image")),
    (0, b"KDMV", _VMDK),
    (0, b"COWD", _VMDK),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", _VMDK),
    (0, b"# Disk DescriptorFile", _VMDK),
    (0x40, b"\x7f\x10\xda\xbe", _image("a VDI image")),
    (0, b"vhdxfile", _image("a VHDX image")),
    (0, b"conectix", _VHD),
    (0, b"WithoutFreeSpace", _image("a Parallels image")),
    (0, b"WithouFreSpacExt", _image("a Parallels image")),
    (0, b"Bochs Virtual HD Image", _image("a Bochs image")),
    (0, b"#!/bin/sh\n#V2.0 Format\n", _image("a cloop image")),
    (0, b"LUKS\xba\xbe", Format("a LUKS volume", "cryptsetup open {path} NAME, and serve /dev/mapper/NAME")),
    (0, b"OOOM\0\0\0", Format("a COW file of User Mode Linux", "uml_moo {path} {new}")),
    (0, b"\x3a\xff\x26\xed", Format("an Android sparse image", "simg2img {path} {new}")),
    (0, b"\x1f\x8b\x08", Format("compressed by gzip", "gzip -dc {path} > {new}")),
    (0, b"\xfd7zXZ\0", Format("compressed by xz", "xz -dc {path} > {new}")),
    (0, b"\x28\xb5\x2f\xfd", Format("compressed by zstd", "zstd -dc {path} > {new}")),
    (0, b"\x04\x22\x4d\x18", Format("compressed by lz4", "lz4 -dc {path} > {new}")),
    (0, b"PK\x03\x04", Format("a ZIP archive", "unzip -p {path} > {new}")),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", "7z x -so {path} > {new}")),
)
"""Offset, bytes, format: the first that fits counts.

Not there: ISO images and file systems, which are raw disks, and tar archives, which some tools give to
guests as disks.
"""

_BY_START: tuple[tuple[re.Pattern[bytes], Format], ...] = (
    # A descriptor of VMDK without the usual first line: comments, then the version.
    (re.compile(rb"(?:[ \t]*(?:#[^\n]*)?\r?\n)*version *= *[123]\r?\n"), _VMDK),
    (re.compile(rb"BZh[1-9]1AY&SY"), Format("compressed by bzip2", "bzip2 -dc {path} > {new}")),
    # The description comes first in an archive of a virtual machine, and tells it from others of tar.
    (re.compile(rb"(?=.{257}ustar)[^\0]{1,95}\.ovf\0", re.DOTALL), _OVA),
)

_BY_TAIL: tuple[tuple[int, bytes, Format], ...] = (
    (512, b"conectix", _VHD),
    (511, b"conectix", _VHD),  # as old versions of Virtual PC wrote it
    (512, b"koly\0\0\0\x04", _image("a DMG image")),
)
"""Bytes from the end, bytes, format."""


def recognise(head: bytes, tail: bytes) -> Format | None:
    """Return what a file is that begins and ends so, HEAD_SIZE and TAIL_SIZE; None: a raw disk, as it seems.

    Where a file is smaller, both are all of it.
    """
    for offset, magic, kind in _BY_MAGIC:
        if head.startswith(magic, offset):
            return kind
    for pattern, kind in _BY_START:
        if pattern.match(head):
            return kind
    for distance, magic, kind in _BY_TAIL:
        if len(tail) >= distance and tail.startswith(magic, len(tail) - distance):
            return kind
    return None
