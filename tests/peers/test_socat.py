"""socat at the sockets that guests' sockets and ports are on the host: vsock and console."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.vsock import Operation, Shutdown
from tests.peers import counterparts
from tests.rig.debian import packages
from tests.rig.programs import process
from tests.rig.programs.backend import start_backend, until_listening, until_printed
from tests.vhost_user.devices.console.driver import driving
from tests.vhost_user.devices.vsock.driver import Guest
from vhost_user import frontend
from vhost_user.devices.console.device import Console

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.peers

SECONDS = 60
CID, PORT = 3, 5000
DATA = bytes(range(256)) * 64


def socat(*arguments: str) -> list[str]:
    return [str(packages.program(counterparts.socat(), "socat")), *arguments]


@asynccontextmanager
async def guest(directory: Path) -> AsyncIterator[Guest]:
    """Run vhost-user-vsock, and be its guest."""
    options = ("--guest-cid", str(CID), "--uds-path", str(directory / "vsock"))
    async with (
        start_backend(directory, "vsock", *options) as backend,
        frontend.connect(backend.socket, memory_size=16 << 20, patience=SECONDS) as front,
    ):
        await front.negotiate()
        made = Guest(CID, front, await front.start_queue(0), await front.start_queue(1))
        made.give_room()
        yield made


async def test_guest_connects_to_a_program_behind_socat(directory: Path) -> None:
    """All comes back; and the end of what the guest sends ends the program, and so the connection."""
    path = directory / f"vsock_{PORT}"
    async with guest(directory) as driver, process.start(socat(f"UNIX-LISTEN:{path}", "EXEC:cat")) as program:
        await until_listening(path)
        end = await driver.port(1024, PORT).connected()
        for at in range(0, len(DATA), 4096):
            await end.send(Operation.RW, DATA[at : at + 4096])
        await end.expect_data(DATA)
        await end.shut_down(Shutdown.SEND)
        await end.expect(Operation.SHUTDOWN)
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0


async def test_socat_connects_to_the_guest(directory: Path) -> None:
    ends = socat("-t60", "-", f"UNIX-CONNECT:{directory}/vsock")  # not before the guest ends it, too
    script = f"(echo CONNECT {PORT}; echo hello) | {' '.join(ends)}"
    async with guest(directory) as driver, process.start(["sh", "-c", script]) as program:
        end = await driver.accepted()
        await end.expect_data(b"hello\n")
        await end.send(Operation.RW, b"and back\n")
        await until_printed(program, "and back\n")
        await end.shut_down(Shutdown.SEND | Shutdown.RECEIVE)
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0
        assert program.output().startswith("OK ")


async def test_program_behind_socat_at_a_port(directory: Path) -> None:
    """The guest sees it come and go, and what it writes comes back."""
    console = Console()
    console.add_port("org.example.agent", f"unix:{directory}/agent")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 1)
        await driver.open(1)
        async with process.start(socat(f"UNIX-CONNECT:{directory}/agent", "EXEC:cat")) as program:
            assert await driver.hear() == ["PORT_OPEN port=1 value=1"]
            await driver.send(1, DATA[:4000])
            back = b""
            while len(back) < 4000:
                back += await driver.receive(1)
            assert back == DATA[:4000]
            program.terminate()
            assert await driver.hear() == ["PORT_OPEN port=1 value=0"]
