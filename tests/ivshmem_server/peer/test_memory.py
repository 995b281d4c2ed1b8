"""Memory without a server: a file or a POSIX shared memory object, as ivshmem-plain uses it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ivshmem_server
from ivshmem_server import UnusableMemoryError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(bytes(8192))
    return path


def test_file_is_shared_with_whoever_maps_it(file: Path) -> None:
    with ivshmem_server.open_memory(file) as one, ivshmem_server.open_memory(str(file)) as two:
        one.memory[8190:8192] = b"hi"
        assert bytes(two.memory[8190:]) == b"hi"
    assert file.read_bytes()[8190:] == b"hi"


def test_name_without_a_slash_is_a_shared_memory_object() -> None:
    name = f"test-peer-{os.getpid()}"
    path = Path("/dev/shm") / name
    with path.open("xb") as file:  # kept open: another test run removes what nobody uses
        file.truncate(4096)
        try:
            with ivshmem_server.open_memory(name) as plain:
                plain.memory.cast("I")[1] = 5
            assert path.read_bytes()[4:8] == (5).to_bytes(4, "little")
        finally:
            path.unlink()


def test_readonly_needs_no_permission_to_write(file: Path) -> None:
    with (
        ivshmem_server.open_memory(file, readonly=True) as plain,
        pytest.raises(TypeError, match="read-only"),
    ):
        plain.memory[0] = 1


def test_missing_memory_is_an_os_error_that_names_it() -> None:
    with pytest.raises(FileNotFoundError, match="/dev/shm/test-not-there"):
        ivshmem_server.open_memory("test-not-there")


@pytest.mark.parametrize(
    ("path", "reason"), [("/dev/null", "no regular file"), ("/proc/self/stat", "0 bytes")]
)
def test_what_is_no_memory_is_refused(path: str, reason: str) -> None:
    with pytest.raises(UnusableMemoryError, match=reason):
        ivshmem_server.open_memory(path, readonly=True)


def test_memory_of_less_than_a_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(4095))
    with pytest.raises(UnusableMemoryError, match="4095 bytes long; 4096 are the least"):
        ivshmem_server.open_memory(path)


def test_closed_memory_is_unmapped(file: Path) -> None:
    with ivshmem_server.open_memory(file) as plain:
        assert str(file) in Path("/proc/self/maps").read_text()
    assert str(file) not in Path("/proc/self/maps").read_text()
    del plain


def test_closed_memory_is_gone_unless_a_view_is_kept(file: Path) -> None:
    with ivshmem_server.open_memory(file) as plain:
        words = plain.memory.cast("I")
    with pytest.raises(ValueError, match="released"):
        bytes(plain.memory)
    words[0] = 9
    assert words[0] == 9


def test_memory_whose_view_is_exported_can_be_closed(file: Path) -> None:
    with ivshmem_server.open_memory(file) as plain:
        keeper = memoryview(plain.memory)
    assert bytes(keeper[:2]) == b"\0\0"
