"""GPIO lines in a Linux guest, whatever boots it: gpiomon, the guide, edges that must all arrive."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.docs.documents import PROJECT, read, session
from tests.rig import process
from tests.rig.backend import until_listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.docs.documents import Command
    from tests.rig.guest import Shell
    from tests.rig.process import Program
    from vhost_user.control_client import ControlClient

SECONDS = 60
GUIDE = session(read("gpio.md"))

_MONITORED = "/tmp/gpiomon"

FIFO_EDGES = 16
"""How many edges Linux keeps for a program that has not read them."""


class Monitor:
    """gpiomon for line 0 of the first chip, in the guest's background, until it has seen `count` edges."""

    def __init__(self, guest: Shell, edge: str, *, count: int) -> None:
        """`edge` is --rising-edge, --falling-edge, or "" for both."""
        self._guest = guest
        self._command = f"gpiomon {edge} --num-events={count} --line-buffered --format=%e gpiochip0 0"

    async def start(self) -> None:
        """Start it. What it prints goes to a file: to print to us would hold it up."""
        files = f">{_MONITORED} 2>{_MONITORED}.errors"
        command = f"{self._command} {files}; echo $? >{_MONITORED}.status"
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
        names = {"0": "FALLING", "1": "RISING"}
        return [names[line] for line in (await self._guest.sh(f"cat {_MONITORED}")).split()]


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


async def follow(guest: Shell, command: Command, directory: Path) -> None:
    """Do a command of the guide's, in the guest or on the host; it prints what the guide says."""
    text = command.text.replace("/tmp/gpio", f"{directory}/gpio")
    if command.on_host:
        if not text.startswith("vhost-user control"):
            return
        argv = [sys.executable, "-m", "vhost_user.cli", *shlex.split(text)[1:]]
        printed = (await trio.run_process(argv, capture_stdout=True)).stdout.decode()
    elif text.endswith("&"):
        printed = await guest.sh(f"( {text[:-1]} ) </dev/null >/dev/null 2>&1 &")
    else:
        printed = await guest.sh(text)
    assert [line.rstrip() for line in printed.splitlines()] == command.output.splitlines(), text


async def check_edges(guest: Shell, control: ControlClient) -> None:
    """A program sees each of a thousand edges, in their order, and only those that it asks for."""
    await control.call("set", on="button", value=0)
    await _check_edges(guest, control, "", ["RISING", "FALLING"] * 500)
    await _check_edges(guest, control, "--rising-edge", ["RISING"] * 32)
    await _check_edges(guest, control, "--falling-edge", ["FALLING"] * 32)


async def _check_edges(guest: Shell, control: ControlClient, option: str, expected: list[str]) -> None:
    edges_a_pulse = len(set(expected))
    monitor = Monitor(guest, option, count=len(expected))
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
    await guest.sh("gpioset --mode=signal gpiochip0 1=1 </dev/null >/dev/null 2>&1 &")
    await control.call("wait_for", on="led", value=1, within=SECONDS)


async def darken(guest: Shell, control: ControlClient) -> None:
    """Have the guest let go of the LED."""
    await guest.sh("killall gpioset")
    await control.call("wait_for", on="led", value=0, within=SECONDS)
