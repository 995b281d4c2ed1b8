"""Our sockets in User Mode Linux: gigabytes, connections, their ends, two guests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.programs.backend import command, start_program
from tests.rig.scenarios import vsock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.uml

MIB = 1 << 20
SECONDS = 60
DRIVER = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"


async def test_bytes_connections_and_their_ends(directory: Path) -> None:
    path, control = directory / "vsock", directory / "control"
    host = vsock.Host(path)
    options = ("--uds-path", str(path), "--control", str(control), "--tx-buffer-size", "262144")
    async with uml.boot_with(directory, DeviceId.VSOCK, "vsock", *options) as (guest, _):
        await vsock.ends(guest, host, control)
        await vsock.connections(guest, host, 1000, 200)
        await vsock.records(guest, host, 2000, 200)
        await vsock.transfer(guest, host, vsock.mebibytes(128) * MIB)


async def has_ended(stream: trio.SocketStream) -> None:
    """Wait for the end: a reset, where the back-end closes before it has taken all that was sent to it."""
    with trio.fail_after(SECONDS):
        try:
            assert await stream.receive_some() == b""
        except trio.BrokenResourceError as error:
            assert isinstance(error.__cause__, ConnectionResetError)  # noqa: PT017 -- or no error at all


async def test_guest_that_ends_leaves_no_connection(directory: Path) -> None:
    """Its driver is unbound, bound again, told of a reset; in the end it is killed."""
    path, control = directory / "vsock", directory / "control"
    host = vsock.Host(path)
    options = ("--uds-path", str(path), "--control", str(control))
    connect = "vsock-load connect vsock 2 5000 steps r1 E F c"
    async with (
        uml.boot_with(directory, DeviceId.VSOCK, "vsock", *options) as (guest, _),
        host.listening(5000) as listener,
    ):
        pid = await guest.sh(f"{connect} >/tmp/steps & echo $!")
        async with await listener.accept() as stream:
            await stream.send_all(b"x")
            await until_it_waits(guest, pid, "r1=1")
            await vsock.call(control, "reset_transport")
            assert await stream.receive_some() == b""
        await guest.sh("until grep -q c= /tmp/steps; do usleep 10000; done")
        assert (await guest.sh("cat /tmp/steps")).split() == ["r1=1", "E=ECONNRESET", "F=ENOTCONN", "c=0"]

        await guest.sh(f"({connect} >/dev/null 2>&1 &)")
        async with await listener.accept() as stream:
            await stream.send_all(b"x")
            await guest.sh(f"cd {DRIVER} && echo virtio0 >unbind && echo virtio0 >bind")
            await has_ended(stream)

        await guest.sh(f"({connect} >/dev/null 2>&1 &)")
        async with await listener.accept() as stream:
            await stream.send_all(b"x")
            await guest.kill()
            await has_ended(stream)


async def until_it_waits(guest: uml.Guest, pid: str, step: str) -> None:
    """Wait until vsock-load, whose steps are in a file, sleeps in the one behind `step`.

    Linux tells a read that begins after a reset less than one that waits.
    """
    state = f"cut -d ' ' -f 3 /proc/{pid}/stat"
    await guest.sh(f'until grep -q {step} /tmp/steps && [ "$({state})" = S ]; do usleep 1000; done')


@asynccontextmanager
async def two_guests(directory: Path) -> AsyncIterator[tuple[uml.Guest, uml.Guest]]:
    """Two guests of one program, with the CIDs 3 and 4."""
    sockets = [directory / "3.sock", directory / "4.sock"]
    settings = [f"guest-cid={cid},socket={path}" for cid, path in zip((3, 4), sockets, strict=True)]
    argv = command("vsock", *uml.SUITED, "--vm", settings[0], "--vm", settings[1])
    async with (
        start_program(directory, argv, "vsock"),
        uml.boot(directory, uml.device(sockets[0], DeviceId.VSOCK)) as one,
        uml.boot(directory, uml.device(sockets[1], DeviceId.VSOCK)) as other,
    ):
        yield one, other


async def test_two_guests_talk(directory: Path) -> None:
    async with two_guests(directory) as (one, other):
        await vsock.between(one, other, 4, 8 * MIB)
        await vsock.between(other, one, 3, 8 * MIB)
        assert await one.sh("vsock-load connect vsock 4 9 steps c; true") == "connect: ECONNRESET"
        assert await one.sh("vsock-load connect vsock 5 9 steps c; true") == "connect: ECONNRESET"
        listening = await one.start("vsock-load listen vsock 10 steps r1 w1 E F c")
        assert await listening.line() == "listening"
        connected = await other.start("vsock-load connect vsock 3 10 steps w1 r1 E")
        with trio.fail_after(SECONDS):
            assert [await connected.line() for _ in range(2)] == ["w1=1", "r1=1"]
            await other.kill()
            assert (await listening.finish()).split() == ["r1=1", "w1=1", "E=0", "F=EPIPE", "c=0"]
