"""docs/console.md is true: its session is played, in a User Mode Linux, and its program passes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.docs.documents import PROJECT, blocks, read, session
from tests.docs.test_vhost_user import rows
from tests.rig.guest import uml, uml_kernel
from tests.rig.programs import process
from tests.rig.programs.backend import start_program, until_listening
from vhost_user.devices.console.descriptions import HOSTS, PortDescription, parse_port
from vhost_user.devices.console.device import Console
from vhost_user.devices.console.options import ConsoleProgram
from vhost_user.devices.console.port import BACKLOG, TRANSCRIPT_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GUIDE = read("console.md")
SECONDS = 60


@pytest.fixture
def built() -> None:
    """See that User Mode Linux is built, as those in tests/uml do."""
    if uml_kernel.built() is None and "CI" not in os.environ:
        pytest.skip("User Mode Linux is not built here: `make uml` builds it, in one to three minutes")


def in_place(text: str, directory: Path) -> str:
    return text.replace("/tmp/", f"{directory}/")


@asynccontextmanager
async def guest_of(directory: Path) -> AsyncIterator[uml.Guest]:
    """Boot a guest with the device whose socket is console.sock."""
    argument = f"virtio_uml.device={directory}/console.sock:{DeviceId.CONSOLE.value}"
    assert argument == in_place("virtio_uml.device=/tmp/console.sock:3", directory)
    async with uml.boot(directory, argument) as guest:
        yield guest


async def on_host(command: str) -> str:
    """Run a command of the guide's; return what it prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    async with process.start(["env", f"PATH={path}", "sh", "-c", command]) as program:
        await program.wait()
        return program.output().removesuffix("\n")


@pytest.mark.uml
@pytest.mark.usefixtures("built")
async def test_the_session(directory: Path) -> None:
    first, *commands = session(GUIDE)
    backend = [str(Path(sys.executable).parent / "vhost-user-console")]
    backend += in_place(first.text, directory).split()[1:]
    with trio.fail_after(3 * SECONDS):
        async with start_program(directory, backend, "backend"), guest_of(directory) as guest:
            await guest.sh("until [ -e /sys/class/virtio-ports/vport0p3/name ]; do usleep 10000; done")
            for command in commands:
                text = in_place(command.text, directory)
                shown = await on_host(text) if command.on_host else await guest.sh(text)
                while text.startswith("cat ") and shown != command.output:
                    shown = await on_host(text)  # what the guest has written is still on its way
                assert shown == command.output, text
    assert len(commands) == 8


@pytest.mark.uml
@pytest.mark.usefixtures("built")
async def test_the_program(directory: Path) -> None:
    names: dict[str, Any] = {}
    exec(blocks(GUIDE, "python")[0], names)  # noqa: S102
    passed = trio.Event()

    async def play() -> None:
        await names["agent_answers"](str(directory / "console.sock"))
        passed.set()

    with trio.fail_after(2 * SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play)
            await until_listening(directory / "console.sock")
            async with guest_of(directory) as guest:
                # Its end is not waited for: the device goes first, and perhaps the guest with it.
                await guest.start("(read -r line && [ $line = ping ] && echo pong) <>/dev/vport0p1 >&0")
                await passed.wait()


def test_hosts_and_options_are_those_there_are() -> None:
    hosts = [cells[0].strip("`") for cells in rows("## What a port is on the host", GUIDE)]
    assert sorted(hosts) == sorted(re.split(", | or ", HOSTS))
    table = [cells[0] for cells in rows("twice.", GUIDE)]
    assert table == ["`link=PATH`", "`size=COLUMNSxROWS`", "`full=block`, `full=drop`", "`backlog=BYTES`"]
    assert parse_port("a=pty,link=b,size=80x25,full=drop,backlog=1") == PortDescription(
        "a", "pty", link="b", size=(80, 25), blocks=False, backlog=1
    )
    assert f"| {BACKLOG} |" in GUIDE
    assert TRANSCRIPT_LIMIT == 1 << 20


def test_calls_are_those_there_are() -> None:
    told = re.findall(r"`(\w+)[^`]*`", "".join(cells[0] for cells in rows("`console1` and so on.", GUIDE)))
    console = Console()
    assert sorted(told) == sorted(console.add_port("port").calls())
    for name in console.simulation.calls():
        assert f"`{name} NAME" in GUIDE


def test_qemus_line_is_what_the_program_prints() -> None:
    device = ConsoleProgram().qemu_device(default_options())
    model, _, properties = device.partition(",")
    assert f"-device {model},chardev=console,{properties}\n" in GUIDE


def default_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.set_defaults(without=[])
    ConsoleProgram().add_options(parser)
    return parser.parse_args([])


def test_example_is_named() -> None:
    assert (PROJECT / "examples/scripted_console.py").is_file()
    assert "python3 examples/scripted_console.py /tmp/console.sock" in GUIDE
