"""Our I2C bus in a User Mode Linux: its tools, its drivers, and the sessions of the guide."""

from __future__ import annotations

import shlex
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.docs.documents import PROJECT, read, session
from tests.guest import i2c_bus
from tests.rig.guest import uml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.docs.documents import Command

pytestmark = pytest.mark.uml

SECONDS = 60


@asynccontextmanager
async def booted(directory: Path, *options: str) -> AsyncIterator[uml.Guest]:
    """Boot a guest with i2c-tools and the bus that `options` describe."""
    async with uml.boot_with(directory, DeviceId.I2C_ADAPTER, "i2c", *options, tools=("i2c",)) as (guest, _):
        yield guest


async def test_tools_and_drivers(directory: Path) -> None:
    async with booted(directory, *i2c_bus.chips(directory)) as guest:
        await i2c_bus.check(guest, directory)


def on_host(text: str, directory: Path) -> list[str]:
    """Return the guide's command line as it is to run here, with its files in `directory`."""
    program, *arguments = shlex.split(text.replace("/tmp/", f"{directory}/"))
    command = [sys.executable, "-m", "vhost_user.program.main"]
    return [*command, *(["run", "i2c"] if program == "vhost-user-i2c" else []), *arguments]


async def run_on_host(command: Command, directory: Path) -> None:
    argv = on_host(command.text, directory)
    result = await trio.run_process(argv, capture_stdout=True, cwd=PROJECT)
    assert result.stdout.decode() == f"{command.output}\n", command.text


async def test_guide(directory: Path) -> None:
    """In a User Mode Linux, where nothing is a module."""
    start, qemu, *commands = session(read("i2c.md"))
    argv = on_host(start.text, directory)
    assert argv[3:6] == ["run", "i2c", "-s"]
    options = argv[7:]
    printed = await trio.run_process([*argv, "--print-qemu-args"], capture_stdout=True, cwd=PROJECT)
    for argument in shlex.split(
        printed.stdout.decode().replace(str(directory), "/tmp").replace("i2c0", "i2c")
    ):
        assert argument.replace("socket,id=i2c,path=/tmp/i2c.sock", "/tmp/i2c.sock,id=i2c") in qemu.text
    async with booted(directory, *options) as guest:
        for command in commands:
            if command.on_host:
                await run_on_host(command, directory)
            elif not command.text.startswith("modprobe "):
                output = await guest.sh(f"{command.text} 2>&1\ntrue", seconds=SECONDS)
                assert output.rstrip(" ") == command.output, command.text
