"""`vhost-user trace` as its users run it: a process started by its command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SECONDS = 60
COMMAND = [sys.executable, "-m", "vhost_user.program.main", "trace"]


DEFAULT_HANGUP = ("env", "--default-signal=HUP")
"""Gives a program SIGHUP's default action, where the tests may run under nohup(1)."""


@contextmanager
def running(
    directory: Path, *options: str, launcher: Sequence[str] = DEFAULT_HANGUP
) -> Iterator[subprocess.Popen[str]]:
    """Run a trace from `directory`/trace to `directory`/backend; `launcher` executes its command."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(directory / "notify"))
    notify.settimeout(SECONDS)
    argv = [
        *launcher,
        *COMMAND,
        "--listen",
        f"{directory}/trace",
        "--connect",
        f"{directory}/backend",
        *options,
    ]
    environment = {**os.environ, "NOTIFY_SOCKET": f"{directory}/notify"}
    with (
        notify,
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
    ):
        try:
            assert notify.recv(4096).startswith(b"READY=1")
            yield process
        finally:
            process.kill()
