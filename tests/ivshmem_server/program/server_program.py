"""ivshmem-server as its users run it to its end, or as a daemon."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.rig.programs import forked
from tests.rig.programs.server import memory_name

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "ivshmem_server.program.server"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Run ivshmem-server to its end."""
    return forked.run("ivshmem-server", *options)


def one_line_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed that must have failed with one line."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert re.fullmatch(r"ivshmem-server: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


@contextmanager
def daemon(directory: Path, *options: str) -> Iterator[Path]:
    """Run a daemon with its files in `directory`; yield its socket. Its parent must have exited 0."""
    pid_file = directory / "pid"
    done = run("-S", f"{directory}/socket", "-M", memory_name(directory), "-p", str(pid_file), *options)
    try:
        assert (done.returncode, done.stdout) == (0, "")
        assert f"listening on {directory}/socket;" in done.stderr or "--log-file" in options
        yield directory / "socket"
    finally:
        if pid_file.exists():
            stop(int(pid_file.read_text()))


def stop(pid: int) -> None:
    """Ask a process that is no child of ours to end, and wait until it has."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended = select.select([pidfd], [], [], 60)[0]
        if not ended:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # for its parent, who may wait for it
        assert ended, "the daemon did not end"
    finally:
        os.close(pidfd)
