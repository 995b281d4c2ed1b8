"""examples/scripted_console.py waits for a guest as long as that takes."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING

import trio

from tests.docs.documents import PROJECT
from vhost_user.devices.console.control import PortState
from vhost_user.devices.console.port import ConsolePort
from vhost_user.devices.console.simulation import PortSimulation

if TYPE_CHECKING:
    from trio.testing import MockClock

run_in_guest = runpy.run_path(str(PROJECT / "examples/scripted_console.py"))["run_in_guest"]

HOUR = 3600.0


async def guest(port: ConsolePort) -> None:
    """Boot slowly, have the script log in, and run its command slowly."""
    for typed, answer in (
        (b"", b"Debian\r\nhost login: "),
        (b"root\r", b"root@host:~# "),
        (b"stty -echo; PS1=; echo rea''dy\r", b"ready\r\n"),
        (b"make world; echo status $?.\r", b"done\r\nstatus 2."),
    ):
        while port.input_size < len(typed):
            await port.changed.park()
        assert port.take_input(100) == typed
        await trio.sleep(HOUR)
        port.put_output(answer)


async def test_slow_guest_is_waited_for(autojump_clock: MockClock) -> None:
    port = ConsolePort(PortState("console", is_console=True, guest_open=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest, port)
        assert await run_in_guest(PortSimulation("console", port), "make world") == ("done\n", 2)
