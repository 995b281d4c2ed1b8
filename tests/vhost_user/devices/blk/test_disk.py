"""Raw files and block devices as disks: through the page cache and around it."""

from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.vhost_user.devices.blk.loop_devices import loop_device
from vhost_user.devices.blk import file as blk_file
from vhost_user.devices.blk.direct import DirectDisk
from vhost_user.devices.blk.disk import DiskUnavailableError, open_disk
from vhost_user.devices.blk.sizes import BlockSizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.devices.blk.file import FileDisk

SIZE = 1 << 20
CONTENT = random.Random(0).randbytes(SIZE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[FileDisk]:
    with closing(open_disk(str(image))) as disk:
        yield disk


@pytest.fixture
def memory_disk() -> Iterator[FileDisk]:
    """A disk on tmpfs, which is without much that filesystems on a medium have."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(CONTENT)
        file.flush()
        with closing(open_disk(file.name)) as disk:
            yield disk


@pytest.fixture(params=[512, 4096])
def direct(image: Path, request: pytest.FixtureRequest) -> Iterator[FileDisk]:
    """A block device with sectors of 512 or 4096 bytes, around the page cache."""
    with (
        loop_device(image, sector_size=request.param) as device,
        closing(open_disk(device, direct=True)) as disk,
    ):
        assert isinstance(disk, DirectDisk)
        assert disk.block_sizes.logical == request.param
        yield disk


def read(disk: FileDisk, offset: int, *lengths: int, align: int = 0) -> bytes:
    """Read into buffers of these lengths, `align` bytes after a page's start."""
    buffers = cut(memory(sum(lengths), align), lengths)
    disk.read(buffers, offset)
    return b"".join(buffers)


def write(
    disk: FileDisk, offset: int, data: bytes, *lengths: int, align: int = 0, stable: bool = False
) -> None:
    view = memory(len(data), align)
    view[:] = data
    disk.write(cut(view, lengths or (len(data),)), offset, stable=stable)


def memory(length: int, align: int) -> memoryview:
    return memoryview(mmap.mmap(-1, length + align))[align:]


def cut(view: memoryview, lengths: tuple[int, ...]) -> list[memoryview]:
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    return [view[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def content(disk: FileDisk) -> bytes:
    return read(disk, 0, disk.size)


def test_file_is_read_and_written(disk: FileDisk, image: Path) -> None:
    assert (disk.size, disk.read_only) == (SIZE, False)
    assert read(disk, 512, 1000, 3000) == CONTENT[512:4512]
    write(disk, 1024, b"x" * 512, 100, 412)
    write(disk, 4096, b"y" * 512, stable=True)
    disk.flush()
    expected = bytearray(CONTENT)
    expected[1024:1536], expected[4096:4608] = b"x" * 512, b"y" * 512
    assert image.read_bytes() == expected


def test_last_part_of_a_sector_is_not_there(image: Path) -> None:
    os.truncate(image, SIZE + 511)
    with closing(open_disk(str(image))) as disk:
        assert disk.size == SIZE


def test_size_is_measured_when_told(disk: FileDisk, image: Path) -> None:
    assert not disk.measure()
    os.truncate(image, 2 * SIZE)
    assert disk.size == SIZE
    assert disk.measure()
    assert disk.size == 2 * SIZE
    os.truncate(image, 512)
    assert disk.measure()
    assert disk.size == 512


def test_reading_beyond_a_new_end_fails(disk: FileDisk, image: Path) -> None:
    os.truncate(image, 512)
    with pytest.raises(OSError, match="has become smaller"):
        read(disk, 0, 1024)


def test_cold_read_does_not_hold_up_the_loop(disk: FileDisk, image: Path) -> None:
    buffers = [memory(4096, 0)]
    with image.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        disk.read_now(buffers, 8192, 4096)
    except BlockingIOError:
        pass
    else:
        pytest.skip(f"the filesystem of {image} does not say what is in its page cache")
    disk.read(buffers, 8192)
    assert disk.read_now(buffers, 8192, 4096) == 4096
    assert buffers[0] == CONTENT[8192:12288]


def test_filesystem_that_cannot_tell_is_read_and_written_at_once(memory_disk: FileDisk) -> None:
    for _ in range(2):
        assert memory_disk.write_now([memory(512, 0)], 0, 512) == 512
        assert memory_disk.read_now([memory(1024, 0)], 0, 1024) == 1024
    assert content(memory_disk) == bytes(512) + CONTENT[512:]


def test_unknown_filesystem_that_cannot_tell_does_not_hold_up_the_loop(
    memory_disk: FileDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tmpfs, as if it were NFS: its refusal of RWF_NOWAIT is real."""
    monkeypatch.setattr(blk_file, "QUICK_FILESYSTEMS", frozenset())
    with closing(open_disk(f"/proc/self/fd/{memory_disk.fileno()}")) as disk:
        for _ in range(2):
            with pytest.raises(OSError, match="not supported"):
                disk.write_now([memory(512, 0)], 0, 512)
            with pytest.raises(OSError, match="not supported"):
                disk.read_now([memory(1024, 0)], 0, 1024)
        assert set(disk.read_each_now([([memory(1024, 0)], 0)] * 2)) == {(0, -1), (1, -1)}
        assert content(disk) == CONTENT


@pytest.mark.parametrize("helpers", [1, 5])
def test_reads_are_the_same_together(
    memory_disk: FileDisk, disk: FileDisk, helpers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blk_file, "processors", lambda: helpers)
    for one in (memory_disk, disk):
        read(one, 0, SIZE)  # into the page cache
        for count in (1, 2, 16):
            size = SIZE // count
            buffers = [cut(memory(size, 0), (100, size - 100)) for _ in range(count)]
            reads = [(views, place * size) for place, views in enumerate(buffers)]
            assert sorted(one.read_each_now(reads)) == [(place, size) for place in range(count)]
            assert b"".join(b"".join(views) for views in buffers) == CONTENT


def test_reads_that_nobody_asks_for_any_more_are_not_taken_for_those_of_the_next_row(
    memory_disk: FileDisk,
) -> None:
    large, small = [([memory(SIZE, 0)], 0)] * 4, [([memory(SIZE // 4, 0)], 0)] * 4
    with closing(memory_disk.read_each_now(large)) as results:
        assert next(results)[1] == SIZE
    assert sorted(memory_disk.read_each_now(small)) == [(place, SIZE // 4) for place in range(4)]


def test_memory_that_was_read_into_is_let_go_of(memory_disk: FileDisk) -> None:
    """A mapping that is still in use somewhere cannot be closed."""
    half = SIZE // 2
    with mmap.mmap(-1, SIZE) as guest:
        view = memoryview(guest)
        reads = [([view[:half]], 0), ([view[half:]], half)]
        assert dict(memory_disk.read_each_now(reads)) == {0: half, 1: half}
        del view, reads
        assert guest[:] == CONTENT


def test_short_and_failed_reads_are_told_from_others(memory_disk: FileDisk) -> None:
    os.truncate(f"/proc/self/fd/{memory_disk.fileno()}", SIZE // 4)
    too_many = cut(memory(SIZE, 0), (256,) * (SIZE // 256))
    whole, half = [memory(SIZE // 4, 0)], [memory(SIZE // 4, 0)]
    for _ in range(8):
        reads = [(whole, 0), (too_many, 0), (half, SIZE // 8), (whole, SIZE)]
        assert dict(memory_disk.read_each_now(reads)) == {0: SIZE // 4, 1: -1, 2: SIZE // 8, 3: 0}


@pytest.mark.parametrize("unmap", [False, True])
def test_zeroes_are_written_where_and_only_where_asked(
    disk: FileDisk, memory_disk: FileDisk, unmap: bool
) -> None:
    """On tmpfs they have to be written without `unmap`."""
    for one in (disk, memory_disk):
        one.write_zeroes(1536, 300 * 1024, unmap=unmap)
        assert content(one) == CONTENT[:1536] + bytes(300 * 1024) + CONTENT[1536 + 300 * 1024 :]
        assert not one.measure()


def test_more_zeroes_than_are_written_at_a_time(memory_disk: FileDisk) -> None:
    os.truncate(f"/proc/self/fd/{memory_disk.fileno()}", 5 << 20)
    memory_disk.measure()
    write(memory_disk, 0, b"x" * (5 << 20))
    memory_disk.write_zeroes(512, (3 << 20) + 512, unmap=False)
    expected = b"x" * 512 + bytes((3 << 20) + 512)
    assert content(memory_disk) == expected.ljust(5 << 20, b"x")


def test_discard_and_unmap_free_space(memory_disk: FileDisk) -> None:
    def used() -> int:
        return os.fstat(memory_disk.fileno()).st_blocks * 512

    assert used() == SIZE
    memory_disk.discard(0, SIZE // 4)
    assert used() == SIZE * 3 // 4
    memory_disk.write_zeroes(SIZE // 2, SIZE // 4, unmap=True)
    assert used() == SIZE // 2
    memory_disk.write_zeroes(SIZE * 3 // 4, SIZE // 4, unmap=False)
    assert used() == SIZE // 2


def test_block_device(image: Path) -> None:
    with loop_device(image) as device, closing(open_disk(device)) as disk:
        assert disk.size == SIZE
        assert read(disk, 512, 4096) == CONTENT[512:4608]
        write(disk, 0, b"x" * 512)
        disk.write_zeroes(4096, 8192, unmap=False)
        disk.write_zeroes(16384, 8192, unmap=True)
        disk.discard(SIZE // 2, SIZE // 2)
        disk.flush()
        expected = bytearray(CONTENT)
        expected[:512], expected[4096:12288], expected[16384:24576] = b"x" * 512, bytes(8192), bytes(8192)
        assert read(disk, 0, SIZE // 2) == expected[: SIZE // 2]


def test_block_device_with_large_sectors_says_so(image: Path) -> None:
    with loop_device(image, sector_size=4096) as device, closing(open_disk(device)) as disk:
        assert (disk.block_sizes.logical, disk.block_sizes.physical) == (4096, 4096)


def test_file_has_sectors_of_512_in_pages_of_4096(disk: FileDisk) -> None:
    assert disk.block_sizes == BlockSizes(logical=512, physical=4096)


def test_direct_disk_keeps_the_loop_from_waiting(direct: FileDisk) -> None:
    with pytest.raises(BlockingIOError):
        direct.read_now([memory(4096, 0)], 0, 4096)
    with pytest.raises(BlockingIOError):
        direct.write_now([memory(4096, 0)], 0, 4096)


@pytest.mark.parametrize("align", [0, 1, 512])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4096), (4096, 8192), (512, 512), (3584, 1024), (512, 12800)]
)
def test_direct_disk_takes_any_sectors_and_any_buffers(
    direct: FileDisk, offset: int, length: int, align: int
) -> None:
    """As aligned, copied through aligned memory, and as parts of larger blocks."""
    assert read(direct, offset, length, align=align) == CONTENT[offset : offset + length]
    assert read(direct, offset, 100, length - 100, align=align) == CONTENT[offset : offset + length]
    write(direct, offset, b"x" * length, length // 2, length - length // 2, align=align)
    assert content(direct) == CONTENT[:offset] + b"x" * length + CONTENT[offset + length :]


def test_direct_disk_writes_zeroes_and_discards(direct: FileDisk) -> None:
    direct.write_zeroes(512, 8192, unmap=False)
    direct.write_zeroes(65536, 8192, unmap=True)
    direct.discard(SIZE - 512, 512)
    expected = bytearray(CONTENT)
    expected[512:8704], expected[65536:73728] = bytes(8192), bytes(8192)
    assert content(direct)[:-4096] == expected[:-4096]


def test_direct_file_is_read_and_written(image: Path) -> None:
    """Whatever its filesystem demands."""
    with closing(open_disk(str(image), direct=True)) as disk:
        write(disk, 512, b"x" * 1024, align=1)
        write(disk, 8192, b"y" * 4096, stable=True)
        expected = bytearray(CONTENT)
        expected[512:1536], expected[8192:12288] = b"x" * 1024, b"y" * 4096
        assert content(disk) == expected


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda _: None, {}, "No such file or directory; create it first, as with: truncate -s 1G"),
        (Path.mkdir, {}, "Is a directory; give a raw file or a block device"),
        (lambda path: path.write_bytes(bytes(511)), {}, "has not one whole block; give it a size"),
        (
            lambda path: path.write_bytes(bytes(4096)),
            {"logical_block_size": 1536},
            "cannot be a disk: '1536' is not a power of two from 512 to 4096",
        ),
        (os.mkfifo, {"read_only": True}, "is a pipe; give a raw file or a block device"),
        (Path.mkdir, {"read_only": True}, "is neither a file nor a block device"),
        (Path.touch, {}, "is empty; give it a size, as with: truncate -s 1G"),
    ],
)
def test_what_can_be_no_disk_is_refused_in_one_line(
    tmp_path: Path, make: object, options: dict[str, Any], said: str
) -> None:
    path = tmp_path / "disk"
    assert callable(make)
    make(path)
    with pytest.raises(DiskUnavailableError, match=said) as caught:
        open_disk(str(path), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_end_that_the_guest_does_not_see_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1000))
    with closing(open_disk(str(path))) as disk:
        assert disk.size == 512
    assert f"{path}: its last 488 bytes are less than a block of 512" in caplog.text
    caplog.clear()
    path.write_bytes(bytes(1024))
    open_disk(str(path)).close()
    assert caplog.text == ""


def test_socket_or_terminal_is_no_disk() -> None:
    with pytest.raises(DiskUnavailableError, match="neither a file nor a block device"):
        open_disk("/dev/null")


def test_file_that_may_only_be_read(image: Path) -> None:
    def refuse_writing(path: str, flags: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, flags)

    opened = os.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse_writing)
        with pytest.raises(DiskUnavailableError, match=r"Permission denied; .* add --read-only"):
            open_disk(str(image))
        with closing(open_disk(str(image), read_only=True)) as disk:
            assert disk.read_only


def test_closed_disk_has_let_go_of_its_file(image: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    open_disk(str(image)).close()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
