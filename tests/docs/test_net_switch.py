"""docs/net-switch.md is true: its options, its commands for the control socket, and its Python."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from typing import TYPE_CHECKING

import trio

from tests.docs.documents import blocks, read, session
from tests.docs.test_vhost_user import documented, of_program
from tests.rig.programs.backend import start_program
from vhost_user.devices.net import switch_options as net_switch_options
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import LineCounts
from vhost_user.devices.net.ports.switch import Switch
from vhost_user.devices.net.simulation import SwitchPortSimulation
from vhost_user.program.main import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

GUIDE = read("net-switch.md")


def test_options() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    for add_options in (
        net_switch_options.add_switch_options,
        net_switch_options.add_link_options,
        net_switch_options.add_line_options,
        net_switch_options.add_capture_options,
    ):
        add_options(parser)
    assert documented("net:", GUIDE) == of_program(parser)


def test_calls() -> None:
    table = GUIDE.partition("| call on `N/port` |")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    switch = Switch(2)
    simulation = SwitchPortSimulation(ImpairedPort(switch.ports[0]), switch)
    assert sorted(names) == sorted(simulation.calls())


def test_counts() -> None:
    paragraph = GUIDE.partition("`statistics` counts")[2].partition("\n\n")[0]
    assert all(f"`{name}`" in paragraph for name in [*vars(LineCounts()), "held"])


async def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program as the guide starts it, and each of its control commands, which print what it says."""
    start, *_ = (command.text for command in session(GUIDE) if command.text.startswith("vhost-user-net"))
    argv = [sys.executable, "-m", "vhost_user.program.main", "run", "net", *moved(start, tmp_path)[1:]]
    controls = [command for command in session(GUIDE) if command.text.startswith("vhost-user control")]
    assert len(controls) == 6
    async with start_program(tmp_path, argv, "net"):
        for command in controls:
            code = await trio.to_thread.run_sync(main, moved(command.text, tmp_path)[1:])
            printed = capsys.readouterr()
            assert (code, printed.err) == (0, "")
            assert json.loads(printed.out) == json.loads(command.output)


def moved(command: str, directory: Path) -> list[str]:
    """Return the words of a command, with what it has in /tmp elsewhere."""
    return shlex.split(command.replace("/tmp/", f"{directory}/"))


async def test_python() -> None:
    (code,) = blocks(GUIDE, "python")
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 -- it is the guide's
    assert len(names["cards"]) == 3  # type: ignore[arg-type]
