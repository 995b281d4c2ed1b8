"""Examples end as programs do: Ctrl-C and a socket that cannot be had are no tracebacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protocol.io import listen
from tests.rig.programs import process
from tests.rig.programs.backend import until_listening

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 60

SERVING = {
    "button_and_led": ("{socket}",),
    "lossy_network": ("{socket}",),
    "numbered_disk": ("--socket-path={socket}",),
    "scripted_console": ("{socket}", "true"),
    "scripted_rng": ("{socket}", "00 01"),
    "thermometer": ("{socket}", "sine"),
    "typing_robot": ("{socket}", __file__),
}
"""The arguments of each example that serves a device at a socket."""


def command(name: str, socket: Path) -> list[str]:
    arguments = (each.format(socket=socket) for each in SERVING[name])
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]


def run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    root = EXAMPLES.parent
    return subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=root)


def in_use(name: str, directory: Path) -> Path:
    """Return the path that is in use when `name` is given directory/socket."""
    return directory / ("socket0" if name == "lossy_network" else "socket")


def test_each_example_is_tried() -> None:
    others = {"ivshmem_demo", "ivshmem_in_guest", "test_scripted_rng"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SERVING, *others}


@pytest.mark.parametrize("name", SERVING)
def test_busy_socket_is_an_error_of_one_line(directory: Path, name: str) -> None:
    path = in_use(name, directory)
    with listen(str(path)):
        done = run(command(name, directory / "socket"))
    (line,) = done.stderr.splitlines()
    assert f"{path} is in use by another program; stop it or choose another path" in line
    assert done.returncode == 1


@pytest.mark.parametrize("name", SERVING)
def test_missing_directory_is_an_error_of_one_line(directory: Path, name: str) -> None:
    done = run(command(name, directory / "missing/socket"))
    (line,) = done.stderr.splitlines()
    assert line.endswith("No such file or directory; create the directory first")
    assert done.returncode == 1


@pytest.mark.parametrize("name", SERVING)
async def test_interrupt_ends_it_without_a_traceback(directory: Path, name: str) -> None:
    socket = in_use(name, directory)
    async with process.start(command(name, directory / "socket")) as program:
        await until_listening(socket)
        os.kill(program.pid, signal.SIGINT)
        code = await program.wait()
        said = program.output()
    assert "Traceback" not in said
    assert code in {0, 130}
    assert not socket.exists()


@pytest.mark.parametrize("name", [name for name in SERVING if name != "numbered_disk"])
def test_missing_arguments_are_told_what_there_are(name: str) -> None:
    done = run([sys.executable, str(EXAMPLES / f"{name}.py")])
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert name in done.stderr


def test_script_that_is_not_bytes_is_refused(directory: Path) -> None:
    done = run([sys.executable, str(EXAMPLES / "scripted_rng.py"), str(directory / "socket"), "0x"])
    (line,) = done.stderr.splitlines()
    assert line.endswith("give bytes, as in 00 01 ff")
    assert done.returncode == 1
