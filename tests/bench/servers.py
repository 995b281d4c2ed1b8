"""The servers to compare, each as a process: started, waited for, looked at, ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.load import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_START_SECONDS = 20
_STOP_SECONDS = 5
_IDLE_SECONDS = 0.02
_LISTENING = "00010000"
"""__SO_ACCEPTCON, the flags of a listening socket in /proc/net/unix."""


@dataclass(frozen=True)
class Server:
    """A kind of server: its name, and the command that serves at a socket with so many vectors."""

    name: str
    command: Callable[[Path, int], list[str]]
    quiet: float
    """After how many seconds without a message the rest is lost. One that never loses may take its time."""


@dataclass(frozen=True)
class Memory:
    """Memory of a process in KiB: resident now, its share of that, and the most ever resident."""

    resident: int
    proportional: int
    peak: int


@dataclass(frozen=True)
class Running:
    """A server that listens at `socket`."""

    pid: int
    socket: Path
    start_seconds: float
    """From the command to the listening socket."""
    start_cpu_seconds: float
    log: Path

    def memory(self) -> Memory:
        """Return how much memory it has now."""
        return process_memory(self.pid)

    def last_words(self) -> str:
        """Return the last line that it has printed."""
        return (self.log.read_text().splitlines() or ["no message"])[-1]

    def stop(self) -> float:
        """Ask it to end (SIGTERM); return how many seconds that took. Raises BenchError."""
        pidfd = os.pidfd_open(self.pid)
        try:
            begin = time.perf_counter()
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not select.select([pidfd], [], [], _STOP_SECONDS)[0]:
                raise BenchError(f"the server had not ended {_STOP_SECONDS} s after SIGTERM")
            return time.perf_counter() - begin
        finally:
            os.close(pidfd)

    def cpu_seconds(self) -> float:
        """Return the CPU time that its main thread has used since it listened, in nanosecond steps."""
        return _cpu_seconds(self.pid) - self.start_cpu_seconds


def ours() -> Server:
    """Return this project's server."""
    module = [sys.executable, "-m", "ivshmem_server.program.server", "-F", "--memfd", "-l", "1M"]
    return Server("ours", lambda socket, vectors: [*module, "-S", str(socket), "-n", str(vectors)], 10)


def c_server(program: str) -> Server:
    """Return QEMU's contrib/ivshmem-server. With -m it leaves no file behind when it aborts."""
    return Server(
        "C server",
        lambda socket, vectors: [
            *(program, "-F", "-l", "1M", "-m", str(socket.parent)),
            *("-S", str(socket), "-n", str(vectors)),
        ],
        1,
    )


@contextmanager
def running(server: Server, directory: Path, vectors: int) -> Iterator[Running]:
    """Run `server` for the length of the block, which begins when it listens and idles.

    Raises BenchError if it does not get to listen.
    """
    socket = directory / "bench.sock"
    socket.unlink(missing_ok=True)
    log_path = directory / "server.log"
    with log_path.open("w") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(server.command(socket, vectors), stdout=log, stderr=log)
        try:
            _wait_until_listening(process, socket, log_path)
            seconds = time.perf_counter() - begin
            yield Running(process.pid, socket, seconds, _wait_until_idle(process.pid), log_path)
        finally:
            _stop(process)


def process_memory(pid: int) -> Memory:
    """Return the memory of process `pid`."""
    status = _kib_fields(Path(f"/proc/{pid}/status"))
    return Memory(status["VmRSS"], _kib_fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"], status["VmHWM"])


def _cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _kib_fields(path: Path) -> dict[str, int]:
    words = [line.split() for line in path.read_text().splitlines()]
    return {word[0].rstrip(":"): int(word[1]) for word in words if word[-1] == "kB"}


def _wait_until_listening(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    """Look at the kernel's table: the C server ends when a client connects just to see whether it is up."""
    deadline = time.monotonic() + _START_SECONDS
    while not listens(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{process.args!r} did not get to listen: {log.read_text().strip()}")
        time.sleep(0.0005)


def _wait_until_idle(pid: int) -> float:
    """Wait until the process has done what it does after listen(); return the CPU time it took so far."""
    before, now = -1.0, _cpu_seconds(pid)
    while now > before:
        time.sleep(_IDLE_SECONDS)
        before, now = now, _cpu_seconds(pid)
    return now


def listens(socket: Path) -> bool:
    """Tell whether somebody listens at `socket`, without connecting."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(f" {socket}") and line.split()[3] == _LISTENING for line in lines)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
