"""Our sockets in Linux under QEMU: bytes, connections, their ends, a pause, a reboot."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.rig.guest import guest as rig
from tests.rig.programs.backend import start_backend
from tests.rig.scenarios import vsock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.guest

MIB = 1 << 20
SECONDS = 60
LOAD = "modprobe vmw_vsock_virtio_transport"


@asynccontextmanager
async def guest_with_sockets(directory: Path) -> AsyncIterator[tuple[rig.Guest, vsock.Host, Path]]:
    """A guest, the host's side of its sockets, and the device's control socket."""
    path, control = directory / "vsock", directory / "control"
    options = ("--guest-cid", "42", "--uds-path", str(path), "--control", str(control))
    async with start_backend(directory, "vsock", *options) as backend:
        device = ("-device", "vhost-user-vsock-pci,chardev=backend")
        async with rig.boot(*backend.chardev(), *device, shared=True) as guest:
            await guest.sh(LOAD)
            yield guest, vsock.Host(path), control


async def test_bytes_connections_and_their_ends(directory: Path) -> None:
    async with guest_with_sockets(directory) as (guest, host, control):
        await vsock.ends(guest, host, control)
        await vsock.connections(guest, host, 1000, 200)
        await vsock.records(guest, host, 2000, 200)
        await vsock.transfer(guest, host, vsock.mebibytes(32) * MIB)
        await _pause(guest, host)
        await _reboot(guest, host)


async def _pause(guest: rig.Guest, host: vsock.Host) -> None:
    """Pause the machine with a connection open, which goes on afterwards."""
    async with host.listening(100) as listener:
        running = await guest.start("vsock-load connect vsock 2 100 steps r1 r1 w1 c")
        async with await listener.accept() as stream:
            await stream.send_all(b"1")
            assert await running.line() == "r1=1"
            await guest.qmp.execute("stop")
            await stream.send_all(b"2")
            await guest.qmp.execute("cont")
            assert (await running.finish()).split() == ["r1=1", "w1=1", "c=0"]
            assert await stream.receive_some() == b"\0"


async def _reboot(guest: rig.Guest, host: vsock.Host) -> None:
    """Reboot with a connection open: the host sees its end, and new ones can be made."""
    async with host.listening(101) as listener:
        running = await guest.start("vsock-load connect vsock 2 101 steps r1 E")
        async with await listener.accept() as stream:
            await stream.send_all(b"1")
            assert await running.line() == "r1=1"
            await guest.reset()
            await guest.sh(LOAD)
            with trio.fail_after(SECONDS):
                assert await stream.receive_some() == b""
    await vsock.connections(guest, host, 10, 10)
