"""Our simulated input devices in User Mode Linux, which selects byte by byte."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from protocol.virtio.input import Event
from protocol.virtio.input_codes import KEYS, EventType, Led, Rel
from tests.guest import evtest
from tests.rig.guest import uml
from tests.rig.programs.backend import start_backend, until_printed
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.guest.uml import Guest
    from tests.rig.programs.backend import RunningBackend

pytestmark = pytest.mark.uml


@asynccontextmanager
async def keyboard_and_mouse(directory: Path, *options: str) -> AsyncIterator[tuple[Guest, RunningBackend]]:
    """Boot with both, of one program."""
    kinds = ("--keyboard", "--mouse")
    async with start_backend(directory, "input", *uml.SUITED, *kinds, *options) as backend:
        sockets = [backend.socket.with_name(f"{backend.socket.name}{number}") for number in range(len(kinds))]
        devices = [uml.device(socket, DeviceId.INPUT) for socket in sockets]
        async with uml.boot(directory, *devices, tools=("input",)) as guest:
            yield guest, backend


def led_command(device: str, led: Led, on: int) -> str:
    """Return the shell command that switches a LED: there is nothing for that in this /sys."""
    events = (Event(EventType.LED, led, on), evtest.SYN_REPORT)
    octal = "".join(rf"\{byte:03o}" for event in events for byte in bytes(16) + event.encode())
    return f"printf '{octal}' >{device}"


async def test_script_waits_for_a_led_and_evtest_prints_what_it_does(directory: Path) -> None:
    script = directory / "script"
    script.write_text("wait led capslock on\ntype abc\nmove 3 4\nwait led capslock off\ntype d\n")
    async with keyboard_and_mouse(directory, "--script", str(script), "--print-events") as (guest, backend):
        await until_printed(backend.program, "the script begins")
        keyboard = await evtest.find(guest, "qemu-companion keyboard")
        keys = [(EventType.KEY, KEYS[key], value) for key in "ABCD" for value in (1, 0)]
        switch = "\n".join(led_command(keyboard, Led.CAPSL, on) for on in (1, 0))
        async with evtest.running(guest, keyboard, len(keys), of="EV_KEY), code", then=switch) as shown:
            pass
        assert [event for event in shown[0].events if event.type == EventType.KEY] == keys
        assert "Event code 2 (LED_SCROLLL) state 0" in shown[0].description
        await until_printed(backend.program, '"data": {"led": "CAPSL", "on": false}')
        await until_printed(backend.program, "the script is at its end")


async def test_driver_that_is_bound_again_gets_what_comes_then(directory: Path) -> None:
    control = str(directory / "control")
    async with (
        keyboard_and_mouse(directory, "--control", control) as (guest, _),
        control_client.connect(control) as client,
    ):
        for step in range(1, 4):
            mouse = await evtest.find(guest, "qemu-companion mouse")
            async with evtest.running(guest, mouse, 3) as shown:
                await client.call("move", on="mouse", dx=step, dy=-step)
            moved = [(EventType.REL, Rel.X, step), (EventType.REL, Rel.Y, -step), evtest.SYN_REPORT]
            assert shown[0].events == moved
            await guest.sh(
                "cd /sys/bus/virtio/drivers/virtio_input; echo virtio1 >unbind; echo virtio1 >bind"
            )
        with trio.fail_after(evtest.SECONDS):
            await client.call("wait_led", on="keyboard", led=Led.CAPSL.name, lit=False)
