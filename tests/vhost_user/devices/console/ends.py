"""A port that the guest has open, and the host's side of it, without a device around them."""

from __future__ import annotations

import fcntl
import struct
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vhost_user.devices.console.control import PortState
from vhost_user.devices.console.port import ConsolePort

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.devices.console.port import HostSide

SECONDS = 60


@asynccontextmanager
async def running(
    host: HostSide, *, is_console: bool = False, blocks: bool | None = None
) -> AsyncIterator[ConsolePort]:
    """Run a host side for a port that the guest has open; close it in the end."""
    port = ConsolePort(PortState("port", is_console, guest_open=True), host, blocks=blocks)
    try:
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.run, port)
                yield port
                nursery.cancel_scope.cancel()
    finally:
        host.close()


def resize(fd: int, columns: int, rows: int) -> None:
    """Give a terminal another size, as its window does."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
