"""The ivshmem server as its users run it: a process started by its command line."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.rig.programs import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_START_SECONDS = 60
_STOP_SECONDS = 60
_STATUS_SECONDS = 60


class ServerStartError(Exception):
    """The server ended before it listened; the text is what it printed."""


@dataclass(frozen=True)
class RunningServer:
    """A server that listens at `socket`. Its memory is the file `shm`, unless it uses a memfd."""

    program: process.Program
    socket: Path
    shm: Path
    status_socket: Path

    async def until_peers(self, *ids: int) -> None:
        """Wait until exactly the clients `ids` are connected, whatever their order.

        A sticky server tells no client of a leave, but its status does.
        """
        with trio.fail_after(_STATUS_SECONDS):
            while {peer["id"] for peer in (await self.status())["peers"]} != set(ids):
                pass

    async def status(self) -> dict[str, Any]:
        """Return what the server says of itself on its status socket."""
        async with await trio.open_unix_socket(self.status_socket) as stream:
            status: dict[str, Any] = json.loads(b"".join([part async for part in stream]))
        return status


def memory_name(directory: Path) -> str:
    """Return the name of the POSIX shared memory of a server in `directory`.

    Its last part alone is that of a test, and the same in another run beside this one.
    """
    return f"{directory.parent.name}-{directory.name}"


@asynccontextmanager
async def start_server(
    directory: Path, *options: str, memfd: bool = False, launcher: Sequence[str] = ()
) -> AsyncIterator[RunningServer]:
    """Run a server in `directory`, after which its POSIX shm is named; stop it when the block ends.

    It must then end with code 0, as it should after any SIGTERM, unless the block has killed it.
    `launcher` is a command that executes the one behind it.
    """
    server_socket, status_socket = directory / "ivshmem.sock", directory / "status.sock"
    shm = Path("/dev/shm") / memory_name(directory)
    argv = [
        *launcher,
        *(sys.executable, "-m", "ivshmem_server.program.server", "-F"),
        *("-S", str(server_socket), "--status-socket", str(status_socket)),
        *(["--memfd"] if memfd else ["-M", memory_name(directory)]),
        *options,
    ]
    environment = {"NOTIFY_SOCKET": str(directory / "notify")}
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        await notify.bind(environment["NOTIFY_SOCKET"])
        async with process.start(argv, env=environment) as program:
            try:
                await _until_ready(program, notify)
                yield RunningServer(program, server_socket, shm, status_socket)
                if not program.killed:
                    program.terminate()
                    with trio.fail_after(_STOP_SECONDS):
                        assert await program.wait() == 0, "the server did not end cleanly on SIGTERM"
            except BaseException:
                shm.unlink(missing_ok=True)  # whoever kills a server cleans up after it
                raise


async def _until_ready(program: process.Program, notify: trio.socket.SocketType) -> None:
    """Wait until the server says that it listens. Raises ServerStartError if it ends instead."""
    if not await process.is_ready(program, notify, _START_SECONDS):
        raise ServerStartError(program.output())
