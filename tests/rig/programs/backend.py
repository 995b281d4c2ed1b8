"""A vhost-user back-end as its users run it: a process started by its command line."""

from __future__ import annotations

import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.rig.programs import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_START_SECONDS = 60
_STOP_SECONDS = 60

_SOCKETS = Path("/proc/net/unix")
_ACCEPTS = 0x10000


class BackendStartError(Exception):
    """The back-end ended before it listened; the text is what it printed."""


@dataclass(frozen=True)
class RunningBackend:
    """A back-end that listens at `socket`."""

    program: process.Program
    socket: Path

    def requests(self) -> list[str]:
        """Return the messages of the front-end so far, in words: for one that was started with -v."""
        return [line.split(": < ")[1] for line in self.program.output().splitlines() if ": < " in line]

    def chardev(self, name: str = "backend", extra: str = "") -> list[str]:
        """Return the QEMU arguments for the chardev `name` that is connected to it."""
        return ["-chardev", f"socket,id={name},path={self.socket}{extra}"]


def command(device: str, *options: str) -> list[str]:
    """Return the command line that runs a device: a name, or MODULE:CLASS."""
    return [sys.executable, "-m", "vhost_user.program.main", "run", device, *options]


@asynccontextmanager
async def start_backend(
    directory: Path, device: str, *options: str, name: str = "backend"
) -> AsyncIterator[RunningBackend]:
    """Run a device that listens in `directory`; stop it when the block ends.

    It must then end with code 0, as it should after any SIGTERM, unless the block has killed it.
    """
    path = directory / f"{name}.sock"
    argv = command(device, "--socket-path", str(path), *options)
    async with start_program(directory, argv, name) as program:
        yield RunningBackend(program, path)
        if not program.killed:
            program.terminate()
            with trio.fail_after(_STOP_SECONDS):
                assert await program.wait() == 0, "the back-end did not end cleanly on SIGTERM"


@asynccontextmanager
async def start_program(
    directory: Path, argv: Sequence[str], name: str, *, pass_fds: Sequence[int] = ()
) -> AsyncIterator[process.Program]:
    """Run a program until the block ends; the block begins when the program says that it is ready."""
    address = _free_address(directory / f"{name}.notify")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        await notify.bind(address)
        async with process.start(argv, env={"NOTIFY_SOCKET": address}, pass_fds=pass_fds) as program:
            await _until_ready(program, notify)
            yield program


async def until_printed(program: process.Program, text: str, count: int = 1) -> None:
    """Wait until a program has printed `text` so many times."""
    with trio.fail_after(_START_SECONDS):
        while program.output().count(text) < count:  # noqa: ASYNC110 -- another process prints it
            await trio.sleep(0.01)


async def until_listening(path: Path) -> None:
    """Wait until somebody listens at `path`: its socket is there a moment earlier, and refuses connections.

    The kernel is asked, as a back-end would take whoever connects for its front-end.
    """
    with trio.fail_after(_START_SECONDS):
        while not _is_listening(path):  # noqa: ASYNC110 -- another process listens
            await trio.sleep(0.01)


def _is_listening(path: Path) -> bool:
    """Tell whether a socket that accepts connections has this path: flags and path, the last, of proc(5)."""
    rows = (row.split(maxsplit=7) for row in _SOCKETS.read_text().splitlines()[1:])
    return any(row[7:] == [str(path)] and int(row[3], 16) & _ACCEPTS for row in rows)


def _free_address(path: Path) -> str:
    """Return `path` for a new socket, without that of a program before that had the same name."""
    path.unlink(missing_ok=True)
    return str(path)


async def _until_ready(program: process.Program, notify: trio.socket.SocketType) -> None:
    if not await process.is_ready(program, notify, _START_SECONDS):
        raise BackendStartError(program.output())
