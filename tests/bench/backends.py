"""The vhost-user back-ends to compare, each as a process, and the load generator vhost_load.c."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.load import BenchError
from tests.bench.servers import listens
from tests.rig.debian import packages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAEMON = "qemu-storage-daemon"

_SOURCE = Path(__file__).with_name("vhost_load.c")
_START_SECONDS = 20
_LOAD_SECONDS = 60
_PAGE = 4096
_GENERATION_BITS = 40
_FACTOR = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Backend:
    """A back-end: the name under which its figures are shown, and the command that serves at a socket."""

    name: str
    command: Callable[[Path], list[str]]


@dataclass(frozen=True)
class LoadReport:
    """What a back-end has done in a while."""

    per_second: float
    bytes_per_second: float
    p50_us: float = 0.0
    p99_us: float = 0.0
    cpu_us: float = 0.0
    """CPU time of the back-end's whole process for each request."""
    kicks: float = 0.0
    calls: float = 0.0
    """Notifications for each request."""
    stalls: int = 0
    """How often nothing came for two seconds, until the driver kicked again: a lost notification."""
    wrong: int = 0
    """Requests that failed, and pages that did not hold what they should."""


@dataclass(frozen=True)
class Workload:
    """What is asked of a back-end: `operation` as vhost_load knows it, bytes and requests in flight."""

    name: str
    operation: str
    size: int
    depth: int
    flags: str = ""


def ours(disk: Path) -> Backend:
    """Return this project's disk."""
    return _python("blk", f"--blk-file={disk}")


def entropy(source: str) -> Backend:
    """Return this project's source of random bytes."""
    return _python("rng", f"--filename={source}")


def storage_daemon(name: str, disk: Path, aio: str) -> Backend:
    """Return QEMU's storage daemon with the I/O engine `aio`, through the page cache as ours.

    Raises SetupError.
    """
    blockdev = f"driver=file,node-name=disk,filename={disk},aio={aio},cache.direct=off"
    export = "vhost-user-blk,id=blk,node-name=disk,writable=on,addr.type=unix,addr.path="
    daemon = str(packages.program(packages.guest_root(), DAEMON))
    return Backend(name, lambda socket: [daemon, "--blockdev", blockdev, "--export", f"{export}{socket}"])


@contextmanager
def serving(backend: Backend, socket: Path) -> Iterator[Path]:
    """Run a back-end for the length of the block, which begins when it listens. Raises BenchError."""
    log_path = socket.with_suffix(".log")
    with log_path.open("w") as log:
        process = subprocess.Popen(backend.command(socket), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not listens(socket):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"{backend.name} did not get to listen: {log_path.read_text().strip()}")
                time.sleep(0.005)
            yield socket
        finally:
            process.terminate()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def make_disk(path: Path, pages: int) -> None:
    """Make a disk of so many pages of 4 KiB, each as vhost_load expects it."""
    inner = struct.pack("<510Q", *(place * _FACTOR % (1 << 64) for place in range(1, 511)))
    with path.open("wb") as file:
        for page in range(pages):
            stamp = struct.pack("<Q", page << _GENERATION_BITS)
            file.write(stamp + inner + stamp)


def run_load(program: Path, socket: Path, disk: Path, workload: Workload, seconds: float) -> LoadReport:
    """Put load on the back-end at `socket`. Raises BenchError."""
    options = [f"-{workload.flags}"] if workload.flags else []
    sizes = [str(workload.size), str(workload.depth), str(seconds)]
    return _report([str(program), *options, str(socket), str(disk), workload.operation, *sizes])


def read_source(program: Path, source: str, size: int, seconds: float) -> LoadReport:
    """Read a file in a loop in C. Raises BenchError."""
    return _report([str(program), "source", source, str(size), str(seconds)])


def build(directory: Path) -> Path:
    """Compile the load generator into `directory`; return the program. Raises BenchError."""
    program = directory / "vhost_load"
    compiler = os.environ.get("CC", "cc")
    try:
        subprocess.run([compiler, "-std=gnu11", "-O2", "-o", str(program), str(_SOURCE)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(
            f"{_SOURCE.name} needs a C compiler (apt-get install gcc, or CC=...): {error}"
        ) from None
    return program


def _python(device: str, option: str) -> Backend:
    command = [sys.executable, "-m", "vhost_user.program.main", "run", device, option, "--socket-path"]
    return Backend("ours", lambda socket: [*command, str(socket)])


def _report(command: list[str]) -> LoadReport:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError(f"no end of: {' '.join(command)}") from None
    if done.returncode:
        raise BenchError(done.stderr.strip())
    return LoadReport(**json.loads(done.stdout))
