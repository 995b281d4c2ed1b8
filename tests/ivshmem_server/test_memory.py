"""The memory that a server shares: created, found, refused, sealed, removed."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ivshmem_server import MemoryUnavailableError, SharedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.fds import OwnedFd

SIZE = 1 << 20


@pytest.fixture
def name() -> Iterator[str]:
    name = f"qemu-companion-{uuid.uuid4().hex[:12]}"
    yield name
    Path("/dev/shm", name).unlink(missing_ok=True)


def test_created_object_is_removed_in_the_end(name: str) -> None:
    with SharedMemory.posix(f"/{name}", SIZE) as memory:
        assert Path("/dev/shm", name).stat().st_size == memory.size == SIZE
        assert Path("/dev/shm", name).stat().st_mode & 0o777 == 0o600
    assert not Path("/dev/shm", name).exists()


def test_found_object_is_used_and_left(name: str) -> None:
    path = Path("/dev/shm", name)
    path.write_bytes(b"left here".ljust(SIZE, b"\0"))
    with SharedMemory.posix(name, SIZE) as memory:
        assert os.pread(memory.fd.fileno(), 9, 0) == b"left here"
    assert path.stat().st_size == SIZE


def test_found_empty_object_gets_its_size_and_is_left(name: str) -> None:
    path = Path("/dev/shm", name)
    path.touch(mode=0o660)
    with SharedMemory.posix(name, SIZE):
        assert path.stat().st_size == SIZE
    assert path.exists()


def test_found_object_of_another_size_is_never_truncated(name: str) -> None:
    path = Path("/dev/shm", name)
    path.write_bytes(bytes(4 * SIZE))
    with pytest.raises(MemoryUnavailableError, match=f"{path} exists with 4 MiB, not 1 MiB"):
        SharedMemory.posix(name, SIZE)
    assert path.stat().st_size == 4 * SIZE


def test_object_of_another_server_is_refused_and_untouched(name: str) -> None:
    with SharedMemory.posix(name, SIZE):
        with pytest.raises(MemoryUnavailableError, match=rf"/dev/shm/{name} .*pid {os.getpid()}"):
            SharedMemory.posix(name, SIZE)
        assert Path("/dev/shm", name).stat().st_size == SIZE


def die_with(name: str) -> None:
    """Have a process use the object, and killed."""
    code = (
        "import os, signal; from ivshmem_server import SharedMemory;"
        f"SharedMemory.posix('{name}', {SIZE}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)


def test_object_is_free_again_after_its_server_was_killed(name: str) -> None:
    die_with(name)
    with SharedMemory.posix(name, SIZE) as memory:
        assert memory.size == SIZE
    assert not Path("/dev/shm", name).exists()  # it was a server that made it


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_object_of_somebody_else_stays_also_when_a_server_was_killed(name: str, mode: int) -> None:
    path = Path("/dev/shm", name)
    path.write_bytes(bytes(SIZE))
    path.chmod(mode)
    die_with(name)
    SharedMemory.posix(name, SIZE).close()
    assert path.stat().st_mode & 0o7777 == mode


def test_object_that_got_a_mode_by_hand_stays_when_its_server_was_killed(name: str) -> None:
    die_with(name)
    Path("/dev/shm", name).chmod(0o660)
    SharedMemory.posix(name, SIZE).close()
    assert Path("/dev/shm", name).exists()


def test_object_of_another_size_is_told_to_be_of_a_killed_server(name: str) -> None:
    die_with(name)
    with pytest.raises(
        MemoryUnavailableError, match="with 1 MiB, not 2 MiB, of a server that was killed; remove"
    ):
        SharedMemory.posix(name, 2 * SIZE)
    assert Path("/dev/shm", name).stat().st_size == SIZE


def test_object_that_somebody_has_put_there_meanwhile_stays(name: str) -> None:
    path = Path("/dev/shm", name)
    with SharedMemory.posix(name, SIZE):
        path.unlink()
        path.touch()
    assert path.exists()


# Peers of a server that was killed


def keep(name: str, count: int) -> tuple[OwnedFd, mmap.mmap]:
    """Be a peer of a server that gives `count` ids and is gone: return its memory, open and mapped."""
    with SharedMemory.posix(name, SIZE) as memory:
        memory.mark_ids(1)
        memory.mark_ids(count)
        return memory.fd.dup(), mmap.mmap(memory.fd.fileno(), SIZE)


def test_ids_of_peers_are_known_while_one_of_them_has_the_memory(name: str) -> None:
    Path("/dev/shm", name).write_bytes(bytes(SIZE))
    (first, first_map), (second, second_map) = keep(name, 5), keep(name, 3)
    with SharedMemory.posix(name, SIZE) as memory:
        memory.mark_ids(7)  # its own are not meant
        assert memory.ids_of_others() == 5
        first.close()
        assert memory.ids_of_others() == 5  # it is mapped still
        first_map.close()
        assert memory.ids_of_others() == 3
        second_map.close()
        second.close()
        assert memory.ids_of_others() == 0


def test_all_ids_may_be_of_others(name: str) -> None:
    Path("/dev/shm", name).write_bytes(bytes(SIZE))
    fd, mapped = keep(name, 1 << 40)  # whoever has the open file can lock what it likes
    with fd, mapped, SharedMemory.posix(name, SIZE) as memory:
        assert memory.ids_of_others() == 65536


def test_client_that_keeps_the_memory_does_not_keep_its_lock(name: str) -> None:
    with SharedMemory.posix(name, SIZE) as memory:
        kept = memory.fd.dup()
    with kept, SharedMemory.posix(name, SIZE) as again:
        assert again.size == SIZE


def test_system_without_posix_shared_memory_is_told_of_the_other_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivshmem_server.memory.SHM_DIRECTORY", tmp_path / "none")
    with pytest.raises(MemoryUnavailableError, match=f"this system has no {tmp_path}/none: use --memfd"):
        SharedMemory.posix(name, SIZE)


@pytest.mark.parametrize("bad", ["", "/", "a/b", ".", "..", "x" * 256, "a\0b"])
def test_name_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(MemoryUnavailableError, match="not a name for POSIX shared memory"):
        SharedMemory.posix(bad, SIZE)


def test_directory_in_the_place_of_the_object_is_named(name: str) -> None:
    path = Path("/dev/shm", name)
    path.mkdir()
    try:
        with pytest.raises(MemoryUnavailableError, match=f"{path}: Is a directory"):
            SharedMemory.posix(name, SIZE)
    finally:
        path.rmdir()


def test_symbolic_link_is_not_followed(name: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(SIZE))
    Path("/dev/shm", name).symlink_to(target)
    with pytest.raises(MemoryUnavailableError, match=name):
        SharedMemory.posix(name, SIZE)


@pytest.mark.parametrize(
    ("asked", "given"), [(1, 4096), (4097, 8192), (3 << 20, 4 << 20), (4 << 20, 4 << 20)]
)
def test_size_is_rounded_up_with_a_warning_that_names_both(
    asked: int, given: int, caplog: pytest.LogCaptureFixture
) -> None:
    with SharedMemory.memfd(asked) as memory:
        assert os.fstat(memory.fd.fileno()).st_size == memory.size == given
    assert ("rounded up" in caplog.text) == (asked != given)


def test_more_than_the_file_system_holds_is_refused_and_nothing_stays(name: str) -> None:
    with pytest.raises(MemoryUnavailableError, match="can hold"):
        SharedMemory.posix(name, 1 << 50)
    assert not Path("/dev/shm", name).exists()


def test_memfd_is_sparse_and_may_exceed_the_machines_memory(caplog: pytest.LogCaptureFixture) -> None:
    with SharedMemory.memfd(16 << 40) as memory:
        assert os.fstat(memory.fd.fileno()).st_size == 16 << 40
        assert os.fstat(memory.fd.fileno()).st_blocks == 0
    assert "a memfd of 16 TiB exceeds memory and swap" in caplog.text


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
def test_more_than_can_be_mapped_is_refused(size: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MemoryUnavailableError, match=r"a memfd cannot hold \d .iB: .*; give less with -l"):
        SharedMemory.memfd(size)
    assert caplog.text == ""


def test_more_than_the_process_may_write_is_refused() -> None:
    code = (
        "import resource, signal; from ivshmem_server import SharedMemory, MemoryUnavailableError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: SharedMemory.memfd(1 << 20)\n"
        "except MemoryUnavailableError as error: print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert "cannot hold 1 MiB: File too large; raise the limit of file sizes (ulimit -f)" in out.stdout
    assert out.stderr == ""


def test_preallocated_memory_is_there(name: str, tmp_path: Path) -> None:
    for memory in (
        SharedMemory.memfd(SIZE),
        SharedMemory.posix(name, SIZE),
        SharedMemory.directory(str(tmp_path), SIZE),
    ):
        with memory:
            memory.preallocate()
            status = os.fstat(memory.fd.fileno())
            assert (status.st_size, status.st_blocks * 512) == (SIZE, SIZE)


def test_preallocation_leaves_what_is_there(name: str) -> None:
    Path("/dev/shm", name).write_bytes(b"left here".ljust(SIZE, b"\0"))
    with SharedMemory.posix(name, SIZE) as memory:
        memory.preallocate()
        assert os.pread(memory.fd.fileno(), 9, 0) == b"left here"


def test_more_than_is_free_is_not_preallocated() -> None:
    with SharedMemory.memfd(16 << 40) as memory:
        with pytest.raises(
            MemoryUnavailableError, match=r"cannot be given 16 TiB, as .* are left \(free memory"
        ):
            memory.preallocate()
        assert os.fstat(memory.fd.fileno()).st_blocks == 0


def test_memfd_cannot_be_resized_by_a_client() -> None:
    with SharedMemory.memfd(SIZE) as memory:
        for size in (0, SIZE // 2, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd.fileno(), size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memory.fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        with mmap.mmap(memory.fd.fileno(), SIZE) as view:
            view[0:2] = b"ok"  # writing stays possible


def test_file_in_a_directory_has_no_name(tmp_path: Path) -> None:
    with SharedMemory.directory(str(tmp_path), SIZE) as memory:
        assert os.fstat(memory.fd.fileno()).st_nlink == 0
        assert os.fstat(memory.fd.fileno()).st_size == SIZE
        assert list(tmp_path.iterdir()) == []


def test_directory_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(MemoryUnavailableError, match=f"'{tmp_path}/none': No such file"):
        SharedMemory.directory(f"{tmp_path}/none", SIZE)


def test_huge_pages_that_are_not_there_are_an_error_that_says_how_to_get_them() -> None:
    pages = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    if not pages.exists():
        with pytest.raises(MemoryUnavailableError, match="gives no huge pages of 2 MiB"):
            SharedMemory.memfd(2 << 20, hugetlb=2 << 20)
        return
    too_many = 2 << 20 << (int(pages.read_text()) + 1).bit_length()
    with pytest.raises(MemoryUnavailableError, match=r"vm\.nr_hugepages"):
        SharedMemory.memfd(too_many, hugetlb=2 << 20)


def test_huge_page_of_no_such_size_is_an_error() -> None:
    with pytest.raises(MemoryUnavailableError, match="gives no huge pages of 8 KiB"):
        SharedMemory.memfd(1 << 20, hugetlb=8192)
