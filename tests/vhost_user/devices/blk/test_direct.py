"""Disks around the page cache: what the host needs aligned, and that no driver notices it."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.fds import OwnedFd
from tests.vhost_user.devices.blk import mounts
from tests.vhost_user.devices.blk.loop_devices import loop_device
from vhost_user.devices.blk.direct import DirectDisk
from vhost_user.devices.blk.disk import DiskUnavailableError, open_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhost_user.devices.blk.file import FileDisk

BLOCK = 4096
BLOCKS = 16
SIZE = BLOCKS * BLOCK + 1024
"""Not whole blocks, but whole sectors."""
CONTENT = random.Random(2).randbytes(SIZE)
ROUNDS = 300


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@contextlib.contextmanager
def aligned(path: Path) -> Iterator[DirectDisk]:
    """Use a file as if its host needed all requests in blocks of 4096 bytes; larger ones do no harm."""
    try:
        direct = OwnedFd(os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        pytest.skip(f"no O_DIRECT at {path}: {error.strerror}")
    with closing(DirectDisk(OwnedFd(os.open(path, os.O_RDWR)), direct, alignment=BLOCK)) as disk:
        yield disk


def memory(length: int) -> memoryview:
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


def filled(byte: int, length: int) -> memoryview:
    view = memory(length)
    view[:] = bytes([byte]) * length
    return view


def read(disk: FileDisk, offset: int, length: int) -> bytes:
    room = memory(length)
    disk.read([room], offset)
    return bytes(room)


@pytest.mark.parametrize("make", [mounts.tmpfs, mounts.overlay, mounts.btrfs, mounts.ext4, mounts.xfs])
@pytest.mark.parametrize("content", [CONTENT, b""], ids=["data", "hole"])
def test_disk_is_the_same_around_the_page_cache_whatever_its_file_system(
    tmp_path: Path, make: Callable[[Path], contextlib.AbstractContextManager[Path]], content: bytes
) -> None:
    """A new file, too, which is a hole: Linux says nothing of the alignment of what reads that."""
    with make(tmp_path) as point:
        path = point / "disk"
        path.write_bytes(content)
        os.truncate(path, SIZE)
        expected = bytearray(content.ljust(SIZE, b"\0"))
        try:
            disk = open_disk(str(path), direct=True)
        except DiskUnavailableError as error:
            pytest.skip(str(error))
        with closing(open_disk(str(path))) as cached, closing(disk):
            assert disk.block_sizes.logical == cached.block_sizes.logical == 512
            assert disk.size == cached.size == SIZE
            for offset, length in [(512, 512), (0, BLOCK), (BLOCK - 512, 1024), (1024, 5 * BLOCK)]:
                assert read(disk, offset, length) == expected[offset:][:length]
                disk.write([filled(offset // 512 + 1, length)], offset)
                expected[offset : offset + length] = bytes([offset // 512 + 1]) * length
                assert read(disk, 0, SIZE) == expected
            disk.write([filled(0x77, 512)], SIZE - 512)
            expected[-512:] = b"\x77" * 512
            assert read(disk, SIZE - 1024, 1024) == expected[-1024:]
        assert path.read_bytes() == expected


def test_block_device_has_sectors_of_its_own_or_as_told(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT[: BLOCKS * BLOCK])
    with loop_device(path, sector_size=BLOCK) as device:
        for direct in (False, True):
            with closing(open_disk(device, direct=direct)) as disk:
                assert disk.block_sizes.logical == BLOCK
            with closing(open_disk(device, direct=direct, logical_block_size=512)) as disk:
                assert (disk.block_sizes.logical, disk.block_sizes.physical) == (512, BLOCK)
                disk.write([filled(1, 1024)], 512)
                disk.write_zeroes(BLOCK + 512, 2 * BLOCK, unmap=False)
                disk.flush()
    expected = CONTENT[:512] + b"\1" * 1024 + CONTENT[1536 : BLOCK + 512] + bytes(2 * BLOCK)
    assert path.read_bytes() == expected + CONTENT[len(expected) : BLOCKS * BLOCK]


sectors = st.integers(0, SIZE // 512 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["read", "write", "zero"]), sectors, st.integers(1, 40))))
def test_any_sectors_are_read_and_written_and_no_others(
    image: Path, requests: list[tuple[str, int, int]]
) -> None:
    image.write_bytes(CONTENT)
    expected = bytearray(CONTENT)
    with aligned(image) as disk:
        for number, (kind, sector, count) in enumerate(requests):
            offset, end = sector * 512, min((sector + count) * 512, SIZE)
            if kind == "read":
                assert read(disk, offset, end - offset) == expected[offset:end]
            elif kind == "write":
                disk.write([filled(number % 255 + 1, end - offset)], offset, stable=bool(number % 2))
                expected[offset:end] = bytes([number % 255 + 1]) * (end - offset)
            else:
                disk.write_zeroes(offset, end - offset, unmap=bool(number % 2))
                expected[offset:end] = bytes(end - offset)
        assert read(disk, 0, SIZE) == expected
    assert image.read_bytes() == expected


def test_end_that_is_no_whole_block_is_written_and_stays_where_it_is(image: Path) -> None:
    with aligned(image) as disk:
        assert disk.size == SIZE
        disk.write([filled(1, 512)], SIZE - 512)
        disk.write([filled(2, 2 * BLOCK)], SIZE - 512 - 2 * BLOCK)
        assert read(disk, SIZE - 1024, 1024) == b"\2" * 512 + b"\1" * 512
    expected = CONTENT[: -2 * BLOCK - 512] + b"\2" * 2 * BLOCK + b"\1" * 512
    assert image.read_bytes() == expected


def test_disk_that_grows_goes_on_where_its_end_was(image: Path) -> None:
    with aligned(image) as disk:
        disk.write([filled(1, 512)], SIZE - 512)
        os.truncate(image, (BLOCKS + 2) * BLOCK)
        disk.write([filled(2, 512)], SIZE - 1024)
        assert disk.measure()
        assert read(disk, SIZE - 1024, 2048) == b"\2" * 512 + b"\1" * 512 + bytes(1024)
        disk.write([filled(3, 1024)], SIZE)
        disk.write([filled(4, BLOCK)], (BLOCKS + 1) * BLOCK)
    end = b"\2" * 512 + b"\1" * 512 + b"\3" * 1024 + bytes(2048) + b"\4" * BLOCK
    assert image.read_bytes() == CONTENT[:-1024] + end


@pytest.mark.parametrize("how", ["written", "zeroed", "freed"])
def test_part_of_a_block_that_is_written_undoes_nothing_that_happens_meanwhile(image: Path, how: str) -> None:
    """Its thread reads the block, puts the part in, and writes the block."""
    done = threading.Event()

    def change(disk: DirectDisk, number: int) -> int:
        if how == "written":
            disk.write([filled(number, BLOCK)], 0)
            return number
        disk.write([filled(number, BLOCK)], 0)
        disk.write_zeroes(0, BLOCK, unmap=how == "freed")
        return 0

    def write_parts(disk: DirectDisk) -> None:
        while not done.is_set():
            disk.write([filled(0xFF, 512)], 512)

    undone = 0
    with aligned(image) as disk:
        writer = threading.Thread(target=write_parts, args=(disk,))
        writer.start()
        try:
            for number in range(ROUNDS):
                expected = change(disk, number % 250 + 1)
                seen = [read(disk, 0, BLOCK) for _ in range(3)]
                undone += any(one[0] != expected or one[-1] != expected for one in seen)
        finally:
            done.set()
            writer.join()
    assert undone == 0


def test_parts_of_one_block_are_all_there(image: Path) -> None:
    """Eight threads write a sector each, again and again."""

    def write(disk: DirectDisk, sector: int) -> None:
        for number in range(ROUNDS // 10):
            disk.write([filled(16 * sector + number % 16, 512)], sector * 512)
            if read(disk, sector * 512, 512) != bytes([16 * sector + number % 16]) * 512:
                undone.append(sector)

    undone: list[int] = []
    with aligned(image) as disk:
        writers = [threading.Thread(target=write, args=(disk, sector)) for sector in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert undone == []
