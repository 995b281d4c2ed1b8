"""examples/scripted_console.py, at the console of a User Mode Linux."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.programs import process
from tests.rig.programs.backend import until_listening

pytestmark = pytest.mark.uml

PROJECT = Path(__file__).parents[2]
SECONDS = 120


async def test_command_is_run_in_the_guest(directory: Path) -> None:
    socket = directory / "console.sock"
    program = str(PROJECT / "examples/scripted_console.py")
    argv = [sys.executable, program, str(socket), "tty; echo $((6 * 7)); (exit 3)"]
    with trio.fail_after(SECONDS):
        async with process.start(argv, env={"PYTHONPATH": str(PROJECT)}) as example:
            await until_listening(socket)
            async with uml.boot(directory, uml.device(socket, DeviceId.CONSOLE)) as guest:
                await guest.sh("setsid getty -n -l /bin/sh -L 0 hvc0 vt100 >/dev/null 2>&1 &")
                assert await example.wait() == 3
                assert example.output() == "/dev/hvc0\n42\n"
