"""GPIO lines in any Linux guest: gpiomon, the guide, edges none of which may be lost."""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.docs.documents import PROJECT, read, session
from tests.rig.programs import process
from tests.rig.programs.backend import until_listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.docs.documents import Command
    from tests.rig.guest.guest import Shell
    from tests.rig.programs.process import Program
    from vhost_user.simulation.control_client import ControlClient

SECONDS = 60
GUIDE = session(read("gpio.md"))

_MONITORED = "/tmp/gpiomon"

FIFO_EDGES = 16
"""How many edges Linux keeps for a program that has not read them."""


@dataclass(frozen=True)
class Tools:
    """How the tools of a version of gpiod are called for the lines of the first chip, by their numbers."""

    read: str
    """Prints the levels of the lines that come behind it."""
    drive: str
    """Drives the lines that come behind it, as NUMBER=LEVEL, until it is killed."""
    flash: str
    """The same for a moment."""
    monitor: str
    """Prints one number for each edge of a line, the names of which are EDGES."""
    edge: Mapping[str, str]
    """What has it see edges of one kind only."""


#: By the number before the first dot: 1.6 is in Debian 12, 2 in 13.
_TOOLS = {
    1: Tools(
        read="gpioget gpiochip0",
        drive="gpioset --mode=signal gpiochip0",
        flash="gpioset gpiochip0",
        monitor="gpiomon --line-buffered --format=%e --num-events={count} {edge} gpiochip0",
        edge={"rising": "--rising-edge", "falling": "--falling-edge", "both": ""},
    ),
    2: Tools(
        read="gpioget --numeric --chip gpiochip0",
        drive="gpioset --chip gpiochip0",
        flash="gpioset --toggle 0 --chip gpiochip0",
        monitor="gpiomon --format=%e --num-events={count} {edge} --chip gpiochip0",
        edge={"rising": "--edges=rising", "falling": "--edges=falling", "both": ""},
    ),
}
_EDGES = {"0": "FALLING", "1": "RISING", "2": "FALLING"}


async def version(guest: Shell) -> int:
    """Return the version of the guest's gpiod, the number before the first dot."""
    found = re.search(r" v(\d+)\.", await guest.sh("gpioget --version"))
    assert found
    return int(found[1])


async def tools(guest: Shell) -> Tools:
    """Return how the guest's tools are called."""
    return _TOOLS[await version(guest)]


class Monitor:
    """gpiomon for line 0 of the first chip, in the guest's background, until it has seen `count` edges."""

    def __init__(self, guest: Shell, edge: str, *, count: int) -> None:
        """`edge` is rising, falling or both."""
        self._guest = guest
        self._edge = edge
        self._count = count

    async def start(self) -> None:
        """Start it. What it prints goes to a file: to print to us would hold it up."""
        called = await tools(self._guest)
        monitor = called.monitor.format(count=self._count, edge=called.edge[self._edge])
        files = f">{_MONITORED} 2>{_MONITORED}.errors"
        command = f"{monitor} 0 {files}; echo $? >{_MONITORED}.status"
        await self._guest.sh(f"rm -f {_MONITORED}*; ( {command} ) </dev/null >/dev/null 2>&1 &")

    async def until_it_waits(self) -> None:
        """Wait until its interrupt is enabled, by what Linux says."""
        await self._guest.sh("until grep -q gpiomon /proc/interrupts; do usleep 10000; done")

    async def until_it_saw(self, count: int) -> None:
        """Wait until it has read so many edges."""
        await self._guest.sh(f"until [ $(wc -l <{_MONITORED}) -ge {count} ]; do usleep 1000; done")

    async def finish(self) -> list[str]:
        """Wait until it has seen all; return them. Raises CommandError with what it said where it failed."""
        await self._guest.sh(f"until [ -s {_MONITORED}.status ]; do usleep 10000; done")
        await self._guest.sh(f"cat {_MONITORED}.errors; exit $(cat {_MONITORED}.status)")
        return [_EDGES[line] for line in (await self._guest.sh(f"cat {_MONITORED}")).split()]


@asynccontextmanager
async def running_example(directory: Path) -> AsyncIterator[tuple[Program, int]]:
    """Run examples/button_and_led.py; yield it, and the descriptor by which to type to it."""
    socket, terminal = directory / "example.sock", directory / "terminal"
    os.mkfifo(terminal)
    keyboard = os.open(terminal, os.O_RDWR | os.O_CLOEXEC)
    argv = [sys.executable, str(PROJECT / "examples/button_and_led.py"), str(socket)]
    try:
        async with process.start(["sh", "-c", 'exec "$@" <"$0"', str(terminal), *argv]) as program:
            await until_listening(socket)
            yield program, keyboard
    finally:
        os.close(keyboard)


def guide_options(directory: Path) -> list[str]:
    """Return the options of the guide's first command, but for its socket, with its files in `directory`."""
    text = next(command.text for command in GUIDE if command.text.startswith("vhost-user-gpio"))
    _, *options = shlex.split(text.replace("/tmp/", f"{directory}/"))
    assert options[:2] == ["--socket-path", f"{directory}/gpio.sock"]
    return options[2:]


def older(command: Command) -> Command:
    """Return what the guide has for gpiod 1.6 in place of a command for gpiod 2."""
    old = dict(re.findall(r"^\| `(gpio.*)` \| `(gpio.*)` \|$", read("gpio.md"), re.MULTILINE))
    assert len(old) >= 4
    return command._replace(text=old.get(command.text, command.text))


async def follow(guest: Shell, command: Command, directory: Path) -> None:
    """Do a command of the guide's, in the guest or on the host; it prints what the guide says."""
    if not command.on_host and await version(guest) == 1:
        command = older(command)
    text = command.text.replace("/tmp/gpio", f"{directory}/gpio")
    if command.on_host:
        if not text.startswith("vhost-user control"):
            return
        argv = [sys.executable, "-m", "vhost_user.program.main", *shlex.split(text)[1:]]
        printed = (await trio.run_process(argv, capture_stdout=True)).stdout.decode()
    elif text.endswith("&"):
        printed = await guest.sh(f"( {text[:-1]} ) </dev/null >/dev/null 2>&1 &")
    else:
        printed = await guest.sh(text)
    assert _words(printed) == _words(command.output), text


def _words(printed: str) -> list[list[str]]:
    """Return the words of each line; those that gpiod 1.6 has besides are left out."""
    return [
        [word for word in line.split() if word not in {"unused", "active-high"}]
        for line in printed.splitlines()
    ]


async def check_edges(guest: Shell, control: ControlClient) -> None:
    """A program sees each of a thousand edges, in their order, and only those that it asks for."""
    await control.call("set", on="button", value=0)
    await _check_edges(guest, control, "both", ["RISING", "FALLING"] * 500)
    await _check_edges(guest, control, "rising", ["RISING"] * 32)
    await _check_edges(guest, control, "falling", ["FALLING"] * 32)


async def _check_edges(guest: Shell, control: ControlClient, edge: str, expected: list[str]) -> None:
    edges_a_pulse = len(set(expected))
    monitor = Monitor(guest, edge, count=len(expected))
    await monitor.start()
    await control.call("wait_for_interrupts", on="button", within=SECONDS)
    for seen in range(0, len(expected), FIFO_EDGES):
        count = min(FIFO_EDGES, len(expected) - seen)
        await control.call("pulse", on="button", count=count // edges_a_pulse, seconds=0, within=SECONDS)
        await monitor.until_it_saw(seen + count)
    assert await monitor.finish() == expected
    state = await control.call("state", on="button")
    assert (state["interrupts"], state["direction"], state["merged"]) == ("none", "none", 0)


async def light(guest: Shell, control: ControlClient) -> None:
    """Have the guest light the LED until `darken()`."""
    await guest.sh(f"{(await tools(guest)).drive} 1=1 </dev/null >/dev/null 2>&1 &")
    await control.call("wait_for", on="led", value=1, within=SECONDS)


async def darken(guest: Shell, control: ControlClient) -> None:
    """Have the guest let go of the LED."""
    await guest.sh("killall gpioset")
    await control.call("wait_for", on="led", value=0, within=SECONDS)
