"""docs/gpio.md is true: its calls, its Python, its syntax. Guests run its session."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import vhost_user
from protocol.virtio.gpio import Direction, IrqType
from tests.docs.documents import PROJECT, blocks, read
from tests.docs.test_vhost_user import rows
from tests.vhost_user.devices.gpio.driver import IRQ, Driver
from vhost_user.devices.gpio import Gpio, SimulatedLine
from vhost_user.devices.gpio.options import LINE_SYNTAX, LIST_SYNTAX
from vhost_user.devices.gpio.simulation import LineState
from vhost_user.testing import driving

if TYPE_CHECKING:
    import pytest

GUIDE = read("gpio.md")
SECONDS = 60


def test_calls_and_their_arguments() -> None:
    documented = {}
    for cells in rows("| call | what it does |", table_of(GUIDE)):
        name, arguments = re.fullmatch(r"`(\w+)\((.*)\)`", cells[0]).groups()  # type: ignore[union-attr]
        documented[name] = [argument.partition("=") for argument in arguments.split(", ") if argument]
    calls = SimulatedLine().calls()
    assert set(documented) == set(calls)
    for name, arguments in documented.items():
        taken = {argument: text.partition(" = ")[2] for argument, text in calls[name].arguments.items()}
        assert {argument: default for argument, _, default in arguments} == taken


def table_of(text: str) -> str:
    """Return the document with an empty line behind each heading of a table, as `rows()` wants it."""
    return re.sub(r"^(\| call \| what it does \|)$", r"\1\n\n\1", text, flags=re.MULTILINE)


def test_types_of_interrupts_and_directions_are_named() -> None:
    names = set(re.findall(r"`([a-z-]+)`", GUIDE))
    assert {kind.name.lower().replace("_", "-") for kind in IrqType} <= names
    assert {direction.name.lower() for direction in Direction} <= names
    assert set(LineState.__dataclass_fields__) <= set(re.findall(r'"(\w+)":', GUIDE))


def test_syntax_is_that_of_the_options() -> None:
    assert f"`{LINE_SYNTAX}`" in GUIDE.replace("\\|", "|")
    assert f"`{LIST_SYNTAX}`" in GUIDE


async def test_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The burglar opens the door, and a guest that watches it lights the lamp."""
    names: dict[str, Any] = {}
    exec(blocks(GUIDE, "python")[0], names)  # noqa: S102 -- it is ours
    monkeypatch.setattr(vhost_user, "serve", watchman)
    with trio.fail_after(SECONDS):
        await names["main"]("/tmp/none")
    assert capsys.readouterr().out == "somebody has seen it\n"


async def watchman(device: Gpio, *, socket_path: str) -> None:
    """Serve the device to a driver that waits for the first line to fall, and sets the second one."""
    async with driving(device, plus=IRQ) as front:
        driver = await Driver.start(front)
        await driver.interrupt(await driver.watch(0, IrqType.EDGE_FALLING))
        await driver.set(1, 1)
        await driver.use(1, Direction.OUT)
        await trio.testing.wait_all_tasks_blocked()


def test_example_says_how_it_is_attached() -> None:
    example = (PROJECT / "examples/button_and_led.py").read_text()
    device = "-chardev socket,path=/tmp/gpio.sock,id=gpio -device vhost-user-gpio-pci,chardev=gpio"
    assert device in example
    assert device in GUIDE
