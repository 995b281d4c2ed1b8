"""How much memory there is, as the kernel's files tell it, and where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ivshmem_server import memory_limits
from ivshmem_server.memory_limits import Limit, free_memory, most_memory

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
MEMINFO = (
    "MemTotal:  4096 kB\nMemFree: 1024 kB\nMemAvailable: 2048 kB\nSwapTotal: 1024 kB\nSwapFree: 512 kB\n"
)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with proc and cgroup in it, empty as yet."""
    monkeypatch.setattr(memory_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory_limits, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def group(system: Path, path: str, **files: str) -> Path:
    directory = system / "cgroup" / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / f"memory.{name}").write_text(f"{text}\n")
    return directory


def test_this_machine_has_some() -> None:
    most, free = most_memory(), free_memory()
    assert most is not None
    assert free is not None
    assert 0 < free.size <= most.size


def test_hidden_files_limit_nothing(system: Path) -> None:
    assert most_memory() is free_memory() is None
    (system / "proc/self/cgroup").write_text("0::/gone\n")
    assert most_memory() is free_memory() is None


def test_file_that_we_do_not_understand_limits_nothing(system: Path) -> None:
    (system / "proc/meminfo").write_text("MemTotal: plenty\n")
    (system / "proc/self/cgroup").write_text("nonsense\n")
    assert most_memory() is free_memory() is None


def test_swap_counts_as_memory(system: Path) -> None:
    (system / "proc/meminfo").write_text(MEMINFO)
    assert most_memory() == Limit(5 * MIB, "memory and swap")
    assert free_memory() == Limit(2560 << 10, "free memory and swap")


@pytest.mark.parametrize("path", ["/", "/user.slice/vm.scope"])
def test_least_limit_counts_of_all_groups_above(system: Path, path: str) -> None:
    (system / "proc/meminfo").write_text(MEMINFO)
    (system / "proc/self/cgroup").write_text(f"0::{path}\n")
    group(system, "user.slice/vm.scope", max="max", current="1")
    group(
        system, "user.slice", max=str(3 * MIB), current=str(2 * MIB), stat=f"anon 7\ninactive_file {MIB // 2}"
    )
    root = group(system, "", max=str(4 * MIB), current=str(3 * MIB))
    said = "the memory limit of the control group"
    slice_ = system / "cgroup" / "user.slice"
    assert most_memory() == (
        Limit(4 * MIB, f"{said} {root}") if path == "/" else Limit(3 * MIB, f"{said} {slice_}")
    )
    assert free_memory() == Limit(MIB, f"{said} {root}")


def test_control_groups_of_version_1(system: Path) -> None:
    (system / "proc/self/cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/docker/7\n0::/\n")
    unlimited = str(9223372036854771712)
    # In a container, its own group is at the root, and the path is the host's.
    root = group(system, "memory", limit_in_bytes=str(MIB), usage_in_bytes=str(2 * MIB))
    assert most_memory() == Limit(MIB, f"the memory limit of the control group {root}")
    assert free_memory() == Limit(0, f"the memory limit of the control group {root}")
    group(system, "memory", limit_in_bytes=unlimited)
    assert most_memory() is None
