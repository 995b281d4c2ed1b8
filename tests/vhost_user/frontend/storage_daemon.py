"""QEMU's storage daemon: a vhost-user back-end that is none of ours, as a disk of numbers."""

from __future__ import annotations

import shutil
import socket
import struct
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.rig.programs import process
from tests.rig.qemu.lines import LineChannel
from tests.rig.qemu.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

DAEMON = "qemu-storage-daemon"
SECTORS = 2048


def content(sector: int) -> bytes:
    """Return what is in a sector to begin with."""
    return struct.pack("<Q", sector) * 64


def fill_disk(directory: Path) -> None:
    """Make the disk."""
    (directory / "disk").write_bytes(b"".join(map(content, range(SECTORS))))


@asynccontextmanager
async def storage_daemon(directory: Path, *, num_queues: int = 1) -> AsyncIterator[process.Program]:
    """Export `directory`/disk at `directory`/backend."""
    if shutil.which(DAEMON) is None:
        pytest.fail(f"no {DAEMON}: run `make setup`", pytrace=False)
    argv = [
        *(DAEMON, "--blockdev", f"driver=file,node-name=disk,filename={directory}/disk"),
        "--export",
        f"vhost-user-blk,id=blk,node-name=disk,writable=on,num-queues={num_queues}"
        f",addr.type=unix,addr.path={directory}/backend",
    ]
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
        monitor = ["--chardev", f"socket,id=qmp,fd={theirs.fileno()}", "--monitor", "qmp"]
        async with process.start(argv + monitor, pass_fds=[theirs.fileno()]) as program:
            theirs.close()
            # It answers once it has made all that its command line says.
            await Qmp.negotiate(LineChannel(trio.socket.from_stdlib_socket(ours)))
            yield program
