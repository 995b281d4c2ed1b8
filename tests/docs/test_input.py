"""docs/input.md is true: its commands are understood, its calls are there, its program does what it says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import trio

from protocol.virtio.input import EVENT, Event
from protocol.virtio.input_codes import EventType, Led
from tests.docs.documents import blocks, read
from tests.vhost_user.devices.input.hands import SECONDS, next_report
from vhost_user.devices.input.player import InputDevices
from vhost_user.devices.input.pointers import Mouse, Tablet
from vhost_user.devices.input.script import USAGES
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.devices.input.touch import Touchscreen
from vhost_user.frontend import connect
from vhost_user.simulation.control_server import describe

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

GUIDE = read("input.md")

EXAMPLES = {"TEXT": "a", "KEY": "A", "BUTTON": "left", "NAME": "capslock", "TIME": "1s", "DEVICE": "tablet"}
"""What stands for a word of a command in capitals; numbers stand for the others."""


def devices() -> InputDevices:
    return InputDevices([Keyboard(), Mouse(), Tablet(), Touchscreen()])


def rows(heading: str) -> list[str]:
    """Return the first column of the table below a heading's row."""
    table = GUIDE.split(f"\n| {heading} |")[1].partition("\n\n")[0]
    return [row.split("|")[1] for row in table.splitlines()[2:]]


def commands() -> list[str]:
    return [command for cell in rows("command") for command in re.findall(r"`([^`]+)`", cell)]


def test_all_commands_of_scripts_are_documented() -> None:
    documented = {" ".join(command.split()[:1]) for command in commands()}
    assert documented == {usage.split()[0] for usage in USAGES} | {"at", "on"}


def test_documented_commands_are_understood() -> None:
    for command in commands():
        short, long = re.sub(r"\[[^]]*\]", "", command), re.sub(r"[\[\]]|\+KEY...", "", command)
        for form in (short, long):
            line = form.replace("COMMAND", "click")
            example = re.sub(r"\b[A-Z]+\d?\b", lambda word: EXAMPLES.get(word[0], "1"), line)
            assert devices().parser.parse(example), example


def test_script_is_understood() -> None:
    (script,) = blocks(GUIDE, "input")
    steps = devices().parser.parse(script)
    assert len(steps) == len([line for line in script.splitlines() if not line.startswith("#")])


def test_all_calls_are_documented() -> None:
    table = GUIDE.split("\n| devices | call |")[1].partition("\n\n")[0]
    documented = set(re.findall(r"`(\w+\([^`]*\))`", table))
    for call in describe(devices()):
        arguments: Any = call["arguments"]
        signature = ", ".join(
            name + (f" = {default}" if (default := text.partition(" = ")[2]) else "")
            for name, text in arguments.items()
        )
        written = f"{call['call']}({signature})".replace("'", '"').replace("True", "true")
        assert written.replace("False", "false") in documented | {"run(script)"}


async def test_program_logs_in_and_tells_of_the_led(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks(GUIDE, "python")
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102 -- the guide's own
    path = directory / "sock"
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names["log_in"], str(path))
            async with connect(path, wait_for_backend=SECONDS) as front:
                await front.negotiate()
                queue = await front.start_queue()
                reports = [await next_report(queue) for _ in range(14)]
                assert EVENT.size == 8
                status = await front.start_queue(1)
                await status.request(Event(EventType.LED, Led.CAPSL, 1).encode())
    assert sum(events[0].value for events in reports) == 7
    assert capsys.readouterr().out == "CAPSL is on\n"
