"""docs/input.md is true: its terminal sessions, with a User Mode Linux as the guest."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.docs.documents import read, session
from tests.guest import evtest
from tests.rig.guest import uml
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from pathlib import Path

    from tests.docs.documents import Command
    from tests.rig.guest.uml import Guest

pytestmark = pytest.mark.uml

GUIDE = read("input.md")
SHOWN = re.findall(r"^    (Event: .*)$", GUIDE, re.MULTILINE)


def host_command(text: str, directory: Path) -> list[str]:
    """Return a command of the host as it is to run here."""
    program, *arguments = text.replace("/tmp/", f"{directory}/").split()
    names = {"vhost-user": [], "vhost-user-input": ["run", "input"]}
    return [sys.executable, "-m", "vhost_user.program.main", *names[program], *arguments]


def without_time(lines: list[str]) -> list[str]:
    return [re.sub(r"time [\d.]+", "time", line) for line in lines]


async def test_sessions(directory: Path) -> None:
    start, *others = session(GUIDE)
    options = host_command(start.text, directory)[5:]
    assert options[:2] == ["-s", f"{directory}/input.sock"]
    async with start_backend(directory, "input", *uml.SUITED, *options[2:], name="input") as backend:
        sockets = [f"{backend.socket}{number}" for number in range(2)]
        devices = [
            uml.device(backend.socket.with_name(path.rpartition("/")[2]), DeviceId.INPUT) for path in sockets
        ]
        async with uml.boot(directory, *devices, tools=("input",)) as guest:
            (names,) = [command for command in others if command.text.startswith("cat ")]
            assert await guest.sh(names.text) == names.output
            calls = [command for command in others if command.text.startswith("vhost-user control")]
            await check_events(guest, calls[0], directory)
            for command in calls[1:]:
                await run(command, directory)


async def check_events(guest: Guest, command: Command, directory: Path) -> None:
    """Run a command of the guide's; evtest prints what the guide says."""
    async with evtest.running(guest, "/dev/input/event0", len(SHOWN)) as shown:
        await run(command, directory)
    assert without_time(shown[0].lines) == without_time(SHOWN)


async def run(command: Command, directory: Path) -> None:
    """Run a command on the host; it prints what the guide says."""
    argv = host_command(command.text, directory)
    result = await trio.run_process(argv, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    assert result.stdout.decode() == f"{command.output}\n"
