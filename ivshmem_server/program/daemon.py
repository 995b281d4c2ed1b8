"""Becoming a daemon whose parent knows how it went, and its PID file."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Daemon:
    """The daemon's line to the parent that waits for it: `ready()` or `failed()`, once."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def ready(self) -> None:
        """Let the parent exit 0. Standard input, output and error are /dev/null from here on."""
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        self._tell(b"\0")

    def failed(self, message: str) -> None:
        """Let the parent print `message` and exit 1."""
        self._tell(message.encode(errors="surrogateescape"))

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody killed the parent; the daemon goes on
            os.write(self._pipe, message)
        os.close(self._pipe)


def daemonize(program: str) -> Daemon:
    """Go on in a child that has no terminal, session or parent; call it before any thread or loop runs.

    The parent does not return: it waits for the child's `ready()` and exits 0, or prints the line of
    `failed()` to standard error and exits 1.
    """
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        _exit_as_told(read_end, program)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    return Daemon(write_end)


def _exit_as_told(pipe: int, program: str) -> None:
    os.wait()  # for the child between us and the daemon, which has nothing more to do
    with os.fdopen(pipe, "rb") as reader:
        message = reader.read()
    if message != b"\0":
        print(
            message.decode(errors="surrogateescape") or f"{program}: the daemon died before it was ready",
            file=sys.stderr,
            flush=True,
        )
    os._exit(message != b"\0")


@contextlib.contextmanager
def pid_file(path: str) -> Iterator[None]:
    """Hold the process's id in the file `path`; remove it in the end if it still says so. Raises OSError."""
    file = Path(path)
    content = f"{os.getpid()}\n"
    file.write_text(content)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if file.read_text() == content:
                file.unlink()
