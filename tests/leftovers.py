"""What a test can leave behind: descriptors, processes, shared memory and temporary files."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "QEMU_COMPANION_TESTS"
"""The environment variable by which a daemon that has left our process tree is known as ours."""

PATIENCE_SECONDS = 20.0
"""How long an orphan may take to notice that its parent has gone, on a machine that is busy."""

_SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Traces:
    """What is there at one moment."""

    descriptors: frozenset[str]
    """Those of this process, each with what it refers to."""
    processes: frozenset[int]
    """All on the machine: looking only at new ones for whose they are is quicker."""
    files: frozenset[Path]

    @classmethod
    def of_now(cls, temporary: Path) -> Self:
        """Look at this process, at all others, at POSIX shared memory and the directory `temporary`."""
        return cls(
            frozenset(_open_descriptors()),
            frozenset(_pids()),
            frozenset([*_SHM.iterdir(), *temporary.iterdir()]),
        )

    def since(self, before: Self) -> Traces:
        """Return what of this came up after `before`, and not by another test run beside ours."""
        return Traces(
            self.descriptors - before.descriptors,
            frozenset(pid for pid in self.processes - before.processes if _is_ours(pid)),
            frozenset(path for path in self.files - before.files if not _is_anothers(path)),
        )

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.processes or self.files)

    def __str__(self) -> str:
        processes = (f"process {pid}: {_command(pid)}" for pid in self.processes)
        return "; ".join([*sorted(self.descriptors), *processes, *(f"file {path}" for path in self.files)])

    def remove(self) -> None:
        """Kill the processes and remove the files, so that the next test finds nothing of them."""
        for pid in self.processes:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for path in self.files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def left_since(before: Traces, temporary: Path) -> Traces:
    """Return what came up after `before` and stayed, given a moment to go."""
    left = Traces.of_now(temporary).since(before)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left and time.monotonic() < deadline:
        gc.collect()  # an owner lost in a reference cycle says so with a ResourceWarning
        time.sleep(0.01)
        left = Traces.of_now(temporary).since(before)
    return left


def _open_descriptors() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them is closed by now
            if int(entry.name) > 2:  # pytest captures what is written to the first ones
                yield f"descriptor {entry.name}: {entry.readlink()}"


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _is_ours(pid: int) -> bool:
    """True for this process, its children, and whoever was started by a test, however long ago."""
    with contextlib.suppress(OSError):
        return os.getpid() in {pid, _parent(pid)} or _is_marked(pid)
    return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def _command(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        command = ""
    return command or "(ended, never waited for)"


def _is_marked(pid: int) -> bool:
    marker = f"{MARKER}={os.environ.get(MARKER)}".encode()
    return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _is_anothers(path: Path) -> bool:
    """True for shared memory that a process uses which is none of ours."""
    return path.parent == _SHM and any(_uses(pid, path) and not _is_ours(pid) for pid in _pids())


def _uses(pid: int, path: Path) -> bool:
    """True for a process that has `path` mapped or open, or a file below it."""
    with contextlib.suppress(OSError):
        maps = Path(f"/proc/{pid}/maps").read_text()
        if f" {path}\n" in maps or f" {path}/" in maps:
            return True
    with contextlib.suppress(OSError):
        return any(link.readlink().is_relative_to(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False
