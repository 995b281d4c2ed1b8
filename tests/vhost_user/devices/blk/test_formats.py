"""Files that are no raw disks: each is told by its bytes, and refused unless it is meant so."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost_user.devices.blk import chains as driver
from tests.vhost_user.devices.blk.loop_devices import loop_device
from vhost_user.devices.blk.disk import DiskUnavailableError, open_disk
from vhost_user.devices.blk.executor import Executor
from vhost_user.devices.blk.formats import HEAD_SIZE, TAIL_SIZE, Format, recognise

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


def at(offset: int, data: bytes, size: int = SIZE) -> bytes:
    """Return an image with these bytes at an offset, from its end where that is negative."""
    start = offset % size
    return (bytes(start) + data).ljust(size, b"\0")


def tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue().ljust(SIZE, b"\0")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("disk.img", bytes(512))
    return file.getvalue().ljust(SIZE, b"\0")


VMDK_DESCRIPTOR = b'# Disk DescriptorFile\nversion=1\nCID=12345678\nRW 2048 FLAT "disk-flat.vmdk" 0\n'
BARE_DESCRIPTOR = b"# made by hand\r\n\r\n  # twice\r\nversion=1\r\nCID=12345678\r\n"

CONTAINERS = {
    "a qcow image": at(0, b"QFI\xfb\0\0\0\x01"),
    "a qcow2 image": at(0, b"QFI\xfb\0\0\0\x03"),
    "a QED image": at(0, b"QED\0"),
    "a VMDK image": at(0, b"KDMV\1\0\0\0"),
    "a VDI image": at(0, b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"),
    "a VHDX image": at(0, b"vhdxfile"),
    "a VHD image": at(0, b"conectix"),
    "a Parallels image": at(0, b"WithouFreSpacExt"),
    "a Bochs image": at(0, b"Bochs Virtual HD Image"),
    "a cloop image": at(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),
    "a DMG image": at(-512, b"koly\0\0\0\x04"),
    "a LUKS volume": at(0, b"LUKS\xba\xbe\0\x02"),
    "a COW file of User Mode Linux": at(0, b"OOOM\0\0\0\x03"),
    "an Android sparse image": at(0, b"\x3a\xff\x26\xed\x01\0"),
    "an OVA archive": tar("machine.ovf"),
    "compressed by gzip": gzip.compress(bytes(SIZE)),
    "compressed by xz": lzma.compress(bytes(SIZE)),
    "compressed by bzip2": bz2.compress(bytes(SIZE)),
    "compressed by zstd": at(0, b"\x28\xb5\x2f\xfd"),
    "compressed by lz4": at(0, b"\x04\x22\x4d\x18"),
    "a ZIP archive": zipped(),
    "a 7z archive": at(0, b"7z\xbc\xaf\x27\x1c"),
}
MORE = {
    "a Parallels image": at(0, b"WithoutFreeSpace"),
    "a LUKS volume": at(0, b"LUKS\xba\xbe\0\x01"),
    "a VHD image": at(-512, b"conectix"),
    "a VMDK image": at(0, b"COWD"),
}
"""Further versions."""

RAW = {
    "empty disk": bytes(SIZE),
    "partition table": at(446, bytes(64) + b"\x55\xaa"),
    "ext4": at(1080, b"\x53\xef"),
    "XFS": at(0, b"XFSB"),
    "swap": at(4086, b"SWAPSPACE2"),
    "LVM": at(512, b"LABELONE"),
    "ISO 9660": at(0x8001, b"CD001"),
    "tar, as docker-machine gives it to a guest": tar("boot2docker, please format-me"),
    "text": at(0, b"hello, version=1\n"),
    "qcow2 within": at(512, b"QFI\xfb\0\0\0\x03"),
}

KNOWN = [(name, data) for row in (CONTAINERS, MORE) for name, data in row.items()]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *KNOWN,
        ("a VMDK image", at(0, b"\xbe\xba\xfe\xca\0\0\0\0")),
        ("a VMDK image", VMDK_DESCRIPTOR),
        ("a VMDK image", BARE_DESCRIPTOR),
        ("a VHD image", at(-511, b"conectix", SIZE - 1)),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_container_is_refused_with_its_name_and_the_remedy(
    tmp_path: Path, name: str, data: bytes, direct: bool
) -> None:
    path = tmp_path / "the disk"
    path.write_bytes(data)
    for read_only in (False, True):
        with pytest.raises(DiskUnavailableError) as caught:
            open_disk(str(path), direct=direct, read_only=read_only)
        said = str(caught.value)
        assert said.startswith(f"{path} is {name}")
        assert f"'{path}'" in said, "the command is not quoted for a shell"
        assert "--format raw" in said
        assert "\n" not in said
    assert path.read_bytes() == data


@pytest.mark.parametrize("direct", [False, True])
def test_container_is_served_byte_by_byte_where_that_is_meant(tmp_path: Path, direct: bool) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTAINERS["a qcow2 image"])
    with closing(open_disk(str(path), direct=direct, raw=True)) as disk:
        room = memoryview(bytearray(SIZE))
        disk.read([room], 0)
        assert room == CONTAINERS["a qcow2 image"]


@pytest.mark.parametrize("name", RAW)
def test_raw_disk_is_served(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(RAW[name])
    open_disk(str(path)).close()


def test_new_and_small_disk_is_served(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    open_disk(str(path)).close()


def test_block_device_is_looked_at_too(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTAINERS["a qcow2 image"])
    with loop_device(path) as device:
        with pytest.raises(DiskUnavailableError, match=f"{device} is a qcow2 image"):
            open_disk(device)
        open_disk(device, raw=True).close()


def test_disk_to_which_its_guest_wrote_a_container_is_served_again_when_told(tmp_path: Path) -> None:
    """Nobody may guess what a guest's own bytes mean: neither open them as qcow2, nor destroy the disk."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    header = CONTAINERS["a qcow2 image"][:512]
    with closing(open_disk(str(path))) as disk:
        Executor(disk).serve(driver.write(0, header))
    with pytest.raises(DiskUnavailableError, match="as where its guest wrote them"):
        open_disk(str(path))
    with closing(open_disk(str(path), raw=True)) as disk:
        back = driver.read(0, 512)
        Executor(disk).serve(back)
        assert back.data == header


@given(st.binary(max_size=HEAD_SIZE), st.binary(max_size=TAIL_SIZE))
def test_any_bytes_are_told(head: bytes, tail: bytes) -> None:
    assert recognise(head, tail) is None or isinstance(recognise(head, tail), Format)


@pytest.mark.parametrize(
    "options",
    [
        ("qcow2",),
        ("qcow",),
        ("qed",),
        ("vdi",),
        ("vhdx",),
        ("parallels",),
        ("vpc",),
        ("vpc", "-o", "subformat=fixed"),
        ("vmdk",),
        ("vmdk", "-o", "subformat=monolithicFlat"),
        ("vmdk", "-o", "subformat=streamOptimized"),
    ],
    ids=" ".join,
)
def test_what_qemu_img_makes_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The real ones, where the machine has qemu-img."""
    if shutil.which("qemu-img") is None:
        pytest.skip("no qemu-img here (Debian: qemu-utils)")
    path = tmp_path / "disk"
    kind, *more = options
    done = subprocess.run(
        ["qemu-img", "create", "-q", "-f", kind, *more, str(path), "8M"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(DiskUnavailableError, match="no raw disk"):
        open_disk(str(path))
