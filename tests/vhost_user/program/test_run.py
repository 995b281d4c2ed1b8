"""A device program that runs, or says in one line why it does not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig.programs.backend import command
from tests.vhost_user.program.cli_program import SECONDS, refusal, run
from vhost_user.devices import DEVICES
from vhost_user.program.installed import find
from vhost_user.program.run import capabilities

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("name", DEVICES)
def test_capabilities_are_those_that_qemu_knows(name: str) -> None:
    """QEMU's docs/interop/vhost-user.json lists the features of some types."""
    told = capabilities(find(name))
    features = {"block": {"read-only", "blk-file"}, "input": {"evdev-path", "no-grab"}}
    assert set(told["features"]) <= features.get(str(told["type"]), set())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "others", [[], ["--fd", "x"], ["--socket-path", "/a", "--fd", "3"], ["--nonsense", "-m", "-1"]]
)
@pytest.mark.parametrize("first", [True, False])
def test_print_capabilities_ignores_everything_else(others: list[str], first: bool) -> None:
    argv = ["--print-capabilities", *others] if first else [*others, "--print-capabilities"]
    result = run("run", "rng", *argv)
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"type": "rng", "features": []}
    assert result.stderr == ""


@pytest.mark.parametrize(
    "argv", [["list"], ["run", "rng", "--print-capabilities"], ["run", "rng", "-s", "a", "--print-qemu-args"]]
)
def test_output_that_nobody_takes(argv: list[str]) -> None:
    program = [sys.executable, "-m", "vhost_user.program.main", *argv]
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "cannot write to standard output: No space left on device" in result.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = subprocess.run(
            program, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
    assert (result.returncode, result.stderr) == (141, "")


def test_output_that_the_encoding_has_no_character_for() -> None:
    """As of a terminal with another encoding than the name of the socket."""
    result = subprocess.run(
        [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "-s", "/tmp/ä", "--print-qemu-args"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    told = "cannot write '\\xe4' to standard output, which is ascii; "
    assert line.endswith(f"{told}set PYTHONIOENCODING=utf-8")


def test_path_that_is_in_no_encoding_is_printed_as_it_is() -> None:
    path = os.fsdecode(b"/tmp/\xff")
    argv = [sys.executable, "-m", "vhost_user.program.main", "run", "rng", "-s", path, "--print-qemu-args"]
    for encoding in ("utf-8", "ascii"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        result = subprocess.run(argv, env=environment, capture_output=True, timeout=SECONDS, check=True)
        assert b"path=/tmp/\xff'" in result.stdout


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ["-s", "/none/s"],
            "cannot listen on /none/s: No such file or directory; create the directory first",
        ),
        (["-s", "/tmp/" + "x" * 200], "a socket's path has at most 107 bytes; choose a shorter one"),
        (["-s", ""], "cannot listen on '': a socket needs a path; choose one"),
        (["--connect", ""], "cannot connect to '': a socket needs a path; choose one"),
        (["--connect", "/tmp/" + "x" * 200], "a socket's path has at most 107 bytes; choose a shorter one"),
        (["--fd", "99"], "descriptor 99 is not a socket: Bad file descriptor; pass --fd a UNIX stream"),
        (["-s", "/tmp/a", "-f", "/none"], "cannot read /none: No such file or directory"),
        (["--fd", "0", "--print-qemu-args"], "--print-qemu-args needs the path of the socket"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(argv: list[str], text: str) -> None:
    assert text in refusal("run", "rng", *argv)


@pytest.mark.parametrize("kind", [Path.mkdir, Path.touch])
def test_what_is_no_socket_is_left_alone(directory: Path, kind: Callable[[Path], None]) -> None:
    kind(directory / "s")
    line = refusal("run", "rng", "-s", str(directory / "s"))
    assert line.endswith("something that is not a socket is there; remove it or choose another path")
    assert (directory / "s").exists()


def test_socket_that_neither_listens_nor_is_connected() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        argv = command("rng", "--fd", str(sock.fileno()))
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=SECONDS, check=False, pass_fds=[sock.fileno()]
        )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("neither listens nor is connected; pass --fd a UNIX stream socket")


def test_file_in_the_socket_s_place_is_said_in_one_line(directory: Path) -> None:
    path = directory / "file"
    path.touch()
    line = refusal("run", "rng", "-s", str(path))
    assert line.endswith(f"{path}: something that is not a socket is there; remove it or choose another path")
    assert path.exists()
