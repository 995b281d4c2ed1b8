"""Our simulated input devices in Linux: evtest prints their events; LEDs come back."""

from __future__ import annotations

import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.input_codes import BTN_TOUCH, BUTTONS, KEYS, Abs, EventType, Rel
from tests.guest import evtest
from tests.rig.debian import platforms
from tests.rig.guest import guest as rig
from tests.rig.programs import process
from tests.rig.programs.backend import start_backend, until_printed
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        platforms.selected().qemu < (9, 0),
        reason="QEMU 7.2 attaches input devices with KVM only; QEMU_COMPANION_PLATFORM=debian13 does always",
    ),
]

PROJECT = Path(__file__).parents[2]
KINDS = ("keyboard", "mouse", "tablet", "touchscreen")
LOAD = "modprobe -a virtio_input evdev"
LAMP = "lamp=$(echo /sys/bus/virtio/devices/*/input/input*/*::{led}/brightness)"

Reports = list[list[tuple[int, int, int]]]


@asynccontextmanager
async def boot(socket: Path, count: int) -> AsyncIterator[rig.Guest]:
    """Boot a guest with the devices of one program: their sockets are `socket` and a number from 0 on."""
    devices = []
    for number in range(count):
        devices += ["-chardev", f"socket,id=input{number},path={socket}{number}"]
        devices += ["-device", f"vhost-user-input-pci,chardev=input{number}"]
    async with rig.boot(*devices, shared=True, tools=("input",)) as guest:
        yield guest


def keys(*names: str) -> Reports:
    """Return a report for each key: pressed by its name, released by the name after a minus."""
    return [[(EventType.KEY, KEYS[name.lstrip("-")], int(name[0] != "-"))] for name in names]


def button(name: str) -> Reports:
    return [[(EventType.KEY, BUTTONS[name], value)] for value in (1, 0)]


def place(x: int, y: int) -> list[tuple[int, int, int]]:
    return [(EventType.ABS, Abs.X, x), (EventType.ABS, Abs.Y, y)]


def finger(slot: int, *events: tuple[Abs, int]) -> list[tuple[int, int, int]]:
    return [(EventType.ABS, Abs.MT_SLOT, slot), *((EventType.ABS, code, value) for code, value in events)]


def at(x: int, y: int) -> list[tuple[Abs, int]]:
    return [(Abs.MT_POSITION_X, x), (Abs.MT_POSITION_Y, y)]


SCRIPTS: dict[str, tuple[str, Reports]] = {
    "keyboard": (
        "type Hi!\nkey down CTRL\npress C\nkey up CTRL\n",
        [
            *keys("LEFTSHIFT", "H", "-H", "-LEFTSHIFT", "I", "-I", "LEFTSHIFT", "1", "-1", "-LEFTSHIFT"),
            *keys("LEFTCTRL", "C", "-C", "-LEFTCTRL"),
        ],
    ),
    "mouse": (
        "move 10 -5\nclick right\nwheel -1\nat 0s move -32767 0\n",
        [
            [(EventType.REL, Rel.X, 10), (EventType.REL, Rel.Y, -5)],
            *button("RIGHT"),
            [(EventType.REL, Rel.WHEEL, -1)],
            [(EventType.REL, Rel.X, -32767)],
        ],
    ),
    "tablet": (
        "point 100 200\nclick\npoint 100 1079\n",
        [place(100, 200), *button("LEFT"), [(EventType.ABS, Abs.Y, 1079)]],
    ),
    "touchscreen": (
        "touch 1 down 10 20\ntouch 0 down 30 40\ntouch 0 move 31 41\ntouch 1 up\ntouch 0 up\ntap 5 6\n",
        [
            [
                *finger(1, (Abs.MT_TRACKING_ID, 0), *at(10, 20)),
                *((EventType.KEY, BTN_TOUCH, 1), *place(10, 20)),
            ],
            finger(0, (Abs.MT_TRACKING_ID, 1), *at(30, 40)),
            [(EventType.ABS, code, value) for code, value in at(31, 41)],
            [*finger(1, (Abs.MT_TRACKING_ID, -1)), *place(31, 41)],
            [*finger(0, (Abs.MT_TRACKING_ID, -1)), (EventType.KEY, BTN_TOUCH, 0)],
            [
                *((EventType.ABS, Abs.MT_TRACKING_ID, 2), *((EventType.ABS, *each) for each in at(5, 6))),
                *((EventType.KEY, BTN_TOUCH, 1), *place(5, 6)),
            ],
            [(EventType.ABS, Abs.MT_TRACKING_ID, -1), (EventType.KEY, BTN_TOUCH, 0)],
        ],
    ),
}
"""What each device is to do, and the reports of that which Linux passes on: axes and slots that change."""

TOLD = {
    "keyboard": ["Event code 28 (KEY_ENTER)", "Event code 1 (LED_CAPSL) state 0"],
    "mouse": ["Event code 274 (BTN_MIDDLE)", "Event code 8 (REL_WHEEL)"],
    "tablet": ["Event code 0 (ABS_X)\n      Value      0\n      Min        0\n      Max     1919\n"],
    "touchscreen": [
        "Event code 47 (ABS_MT_SLOT)\n      Value      0\n      Min        0\n      Max        9\n",
        "Event code 54 (ABS_MT_POSITION_Y)\n      Value      0\n      Min        0\n      Max     1079\n",
        "Property type 1 (INPUT_PROP_DIRECT)",
    ],
}
"""What evtest is to say of each, among other things."""


async def test_evtest_prints_exactly_what_was_done_also_after_a_reboot(directory: Path) -> None:
    control = str(directory / "control")
    options = [f"--{kind}" for kind in KINDS]
    async with (
        start_backend(directory, "input", *options, "--control", control) as backend,
        boot(backend.socket, len(KINDS)) as guest,
    ):
        await guest.sh(LOAD)
        for kind in KINDS:
            await check(guest, control, kind)
        await check_leds(guest, control)
        await guest.reboot()
        await guest.sh(LOAD)
        await check(guest, control, "keyboard")


async def check(guest: rig.Guest, control: str, kind: str) -> None:
    """Have a device do its script, and compare with what evtest prints."""
    script, reports = SCRIPTS[kind]
    expected = [event for report in reports for event in (*report, evtest.SYN_REPORT)]
    name = "qemu-companion " + ("touch screen" if kind == "touchscreen" else kind)
    device = await evtest.find(guest, name)
    routed = "".join(f"on {kind} {line}\n" for line in script.replace("at 0s ", "").splitlines())
    async with (
        evtest.running(guest, device, len(expected)) as shown,
        control_client.connect(control) as client,
    ):
        await client.call("run", script=routed)
    assert shown[0].events == expected
    description = re.sub(r"\n +(Fuzz|Flat|Resolution) .*", "", shown[0].description)
    for line in TOLD[kind]:
        assert line in description, description


async def check_leds(guest: rig.Guest, control: str) -> None:
    """Switch a LED in the guest, and see that the device says so."""
    async with control_client.connect(control) as client:
        await client.subscribe()
        for on in (True, False):
            await guest.sh(f"{LAMP.format(led='capslock')}; echo {int(on)} >$lamp")
            with trio.fail_after(evtest.SECONDS):
                event = await client.next_event()
            assert (event.name, event.on, event.data) == ("led", "keyboard", {"led": "CAPSL", "on": on})
            assert await client.call("leds", on="keyboard") == (["CAPSL"] if on else [])


@pytest.mark.extended
async def test_typing_robot_types_into_a_shell(directory: Path) -> None:
    commands = directory / "commands.txt"
    commands.write_text('echo "Is it $((6*7))?" >/tmp/typed\nrev /tmp/typed >/tmp/reversed\n')
    argv = [
        sys.executable,
        str(PROJECT / "examples/typing_robot.py"),
        str(directory / "sock0"),
        str(commands),
    ]
    async with process.start(argv) as robot:
        await until_printed(robot, "listening")
        async with boot(directory / "sock", 1) as guest:
            await guest.sh("setsid sh -i <>/dev/tty1 >&0 2>&1 &")
            await guest.sh(LOAD)
            with trio.fail_after(evtest.SECONDS):
                assert await robot.wait() == 0
            assert await guest.sh("cat /tmp/typed /tmp/reversed") == "Is it 42?\n?24 ti sI"
        assert robot.output().count("done: ") == 2
