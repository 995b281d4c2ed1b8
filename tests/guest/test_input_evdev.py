"""Pass-through with a real evdev: the guest is the host, QEMU's devices its hardware."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from protocol.virtio.input_codes import BUTTONS, KEYS, Abs, EventType, Led
from tests.guest import evtest
from tests.guest.test_guide import HOST_FILES, MOUNT, PROJECT
from tests.rig.guest import guest as rig

if TYPE_CHECKING:
    from tests.rig.guest.guest import Command

pytestmark = pytest.mark.guest

HARDWARE = ("-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci")
PYTHON = f"cd /host{PROJECT} && PYTHONPATH={PROJECT} chroot /host {Path(sys.executable).absolute()} -B"
#: Waits for a line, and takes a device from its driver then, as if it were unplugged.
UNPLUG = """
driver=/sys/bus/virtio/drivers/virtio_input
(read -r line <&1; basename $(readlink -f /sys/class/input/{device}/device/device) >$driver/unbind) &
"""
A, B = KEYS["A"], KEYS["B"]


def key(name: str, *, down: bool) -> dict[str, Any]:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": name}}}


def button(name: str, *, down: bool) -> dict[str, Any]:
    return {"type": "btn", "data": {"down": down, "button": name}}


def axis(name: str, value: int) -> dict[str, Any]:
    return {"type": "abs", "data": {"axis": name, "value": value}}


class Told:
    """What the program in the guest says, by what it is about, but for keys that repeat as they are held."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._lines: list[dict[str, Any]] = []

    async def next(self, path: str, about: str) -> Any:
        """Wait for the next word on this of the device at `path`."""
        with trio.fail_after(evtest.SECONDS):
            while True:
                for line in self._lines:
                    if line["path"] == path and about in line:
                        self._lines.remove(line)
                        return line[about]
                line = json.loads(await self._command.line())
                if [value for *_, value in line.get("report", ())] != [2]:
                    self._lines.append(line)


@pytest.mark.extended
async def test_devices_of_a_real_kernel_are_passed_on() -> None:
    async with rig.boot(*HARDWARE, *HOST_FILES) as guest:
        await guest.sh(f"modprobe -a virtio_input evdev\n{MOUNT}")
        keyboard = await evtest.find(guest, "QEMU Virtio Keyboard")
        tablet = await evtest.find(guest, "QEMU Virtio Tablet")
        command = await guest.start(
            f"{UNPLUG.format(device=Path(keyboard).name)}\n"
            f"{PYTHON} -m tests.guest.passing_on {keyboard} {tablet}"
        )
        told = Told(command)
        for path in (keyboard, tablet):
            refused = await told.next(path, "refused")
            assert refused.startswith(
                f"cannot grab {path}: Device or resource busy; another program has it; end"
            )
        assert await told.next(keyboard, "name") == "QEMU Virtio Keyboard"
        assert await told.next(tablet, "axis") == {
            "minimum": 0,
            "maximum": 32767,
            **dict.fromkeys(("fuzz", "flat", "resolution"), 0),
        }
        assert await told.next(keyboard, "leds") == [Led.CAPSL]
        for path in (keyboard, tablet):
            assert await told.next(path, "takes") == "reports"

        for down in (True, False):
            await guest.qmp.execute("input-send-event", events=[key("a", down=down)])
            assert await told.next(keyboard, "report") == [[EventType.KEY, A, int(down)]]
        events = [axis("x", 100), axis("y", 200), button("left", down=True)]
        await guest.qmp.execute("input-send-event", events=events)
        assert await told.next(tablet, "report") == [
            [EventType.ABS, Abs.X, 100],
            [EventType.ABS, Abs.Y, 200],
            [EventType.KEY, BUTTONS["LEFT"], 1],
        ]

        await guest.qmp.execute("input-send-event", events=[key("b", down=True)])
        assert await told.next(keyboard, "report") == [[EventType.KEY, B, 1]]
        await command.tell("unplug it")
        assert await told.next(keyboard, "report") == [[EventType.KEY, B, 0]]
