"""docs/uml.md is true: what it tells the reader to do is done here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import trio

from tests.rig.guest import uml, uml_kernel
from tests.rig.programs import process
from tests.rig.programs.backend import start_program, until_listening

pytestmark = pytest.mark.uml

PROJECT = Path(__file__).parents[2]
GUIDE = (PROJECT / "docs/uml.md").read_text()
IMPORTS = """
from functools import partial
import trio
import vhost_user
from examples.scripted_rng import ScriptedRng
"""
SECONDS = 240


def blocks(language: str, directory: Path) -> list[str]:
    """Return the guide's code blocks in `language`, without prompts, and with `directory` for /tmp."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert found
    return [block.removeprefix("$ ").replace("/tmp/", f"{directory}/") for block in found]


def shell(command: str, before: str = "true") -> list[str]:
    """Return what runs the guide's `command` in place of a shell, which does `before` first."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return ["env", f"PATH={path}", "sh", "-c", f"{before} && cd {PROJECT} && exec env {command.strip()}"]


async def boot(directory: Path, command: str) -> str:
    """Boot by the guide's `command`, and type the guide's shell commands; return what it prints."""
    (script,) = blocks("sh", directory)
    typed = f"mkfifo {directory}/keys && exec <>{directory}/keys && echo {shlex.quote(script)} >&0"
    for name, file in (("linux", uml_kernel.built()), ("initramfs.cpio", uml.initramfs())):
        command = re.sub(rf"(?<=[ =]){re.escape(name)}\b", str(file), command)
    async with process.start(shell(command, typed), own_group=True) as program:
        await program.wait()
        return program.output()


@pytest.mark.parametrize("way", ["command", "program"])
async def test_the_commands(directory: Path, way: str) -> None:
    make, backend, boot_line, trace = blocks("console", directory)
    (program,) = blocks("python", directory)
    by_program = ["env", f"PYTHONPATH={PROJECT}", sys.executable, "-c", IMPORTS + program]
    assert make == "make uml\n"
    with trio.fail_after(SECONDS):
        async with process.start(shell(backend) if way == "command" else by_program):
            await until_listening(directory / "rng.sock")
            async with start_program(directory, shell(trace), "trace") as traced:
                boot_line = boot_line.replace(f"{directory}/rng.sock:4", f"{directory}/trace.sock:4")
                shown = (await boot(directory, boot_line)).splitlines()
                text = traced.output()
    assert shown.count("virtio_rng.0") == 1
    assert shown.count("000102ff000102ff") == 1
    assert shown.count("virtio0") == 1
    assert text.count("> SET_FEATURES") == 4
    assert "> VRING_KICK" in text
    assert "< VRING_CALL" in text
