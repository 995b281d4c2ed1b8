"""`vhost-user trace` as a program: options, output, signals, and one line for each error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protocol.vhost_user import pack
from tests.vhost_user.program.trace_program import COMMAND, SECONDS, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=SECONDS, check=False)


def say_hello(directory: Path) -> None:
    """Connect to the trace, and send one message."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.connect(str(directory / "trace"))
        with contextlib.suppress(BrokenPipeError):  # where it cannot print, it may end before we send
            sock.send(pack(1, 1, b""))


@contextlib.contextmanager
def backend(directory: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SECONDS)
        sock.bind(str(directory / "backend"))
        sock.listen()
        yield sock


def receive(listener: socket.socket) -> bytes:
    """Return all that one connection brings."""
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(SECONDS)
        return b"".join(iter(lambda: accepted.recv(4096), b""))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "/a"], "--connect"),
        (["--listen", "/no/such", "--connect", "/b"], "create the directory first"),
        (["--listen", "{}/a", "--connect", "/b", "-o", "/no/such/file"], "give another --output"),
        (["--listen", "{}/a", "--connect", "/b", "--format", "xml"], "invalid choice: 'xml'"),
        (["--listen", "{}/" + "a" * 120, "--connect", "/b"], "at most 107 bytes"),
        (["--listen", "{}/used", "--connect", "/b"], "stop it or choose another path"),
        (
            ["--listen", "{}", "--connect", "/b"],
            "something that is not a socket is there; remove it or choose",
        ),
        (["--listen", "", "--connect", "/b"], "cannot listen on '': a socket needs a path; choose one"),
        (["--listen", "/a", "--connect", ""], "cannot connect to '': a socket needs a path; choose one"),
        (["--listen", "/a", "--connect", "/" + "b" * 120], "at most 107 bytes; choose a shorter one"),
        (["--listen", "{}/a", "--connect", "{}/./a"], "are both"),
        (["--listen", "{}/a", "--connect", "/b", "--mode", "rw"], "write it in octal, as 0660"),
    ],
)
def test_error_is_one_line(directory: Path, options: list[str], said: str) -> None:
    with socket.socket(socket.AF_UNIX) as used:
        used.bind(str(directory / "used"))
        used.listen()
        done = run(*(option.format(directory) for option in options))
    assert done.returncode in {1, 2}
    assert done.stdout == ""
    assert re.fullmatch(r"vhost-user trace: [^\n]+\n", done.stderr), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_cleanly(directory: Path, number: signal.Signals) -> None:
    with running(directory) as process:
        assert (directory / "trace").is_socket()
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert not (directory / "trace").exists()


def test_nohup_is_respected(directory: Path) -> None:
    with backend(directory), running(directory, launcher=["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        say_hello(directory)
        assert process.stdout is not None
        assert f"#1 - process {os.getpid()} (" in process.stdout.readline()


def test_socket_has_the_mode_that_it_was_given(directory: Path) -> None:
    with running(directory, "--mode", "0606"):
        assert (directory / "trace").stat().st_mode & 0o777 == 0o606


def test_lines_come_at_once(directory: Path) -> None:
    with backend(directory) as listener, running(directory) as process:
        say_hello(directory)
        assert process.stdout is not None
        assert f"#1 - process {os.getpid()} (" in process.stdout.readline()
        assert process.stdout.readline().endswith("#1 > GET_FEATURES\n")
        assert "#1 - connection closed by the front-end" in process.stdout.readline()
        assert receive(listener) == pack(1, 1, b"")


def test_json_goes_to_a_file(directory: Path) -> None:
    file = directory / "trace.json"
    with (
        backend(directory) as listener,
        running(directory, "--format", "json", "--output", str(file)) as process,
    ):
        say_hello(directory)
        receive(listener)
        process.terminate()
        assert process.wait(SECONDS) == 0
        assert process.stdout is not None
        assert process.stdout.read() == ""
    messages = [json.loads(line).get("message") for line in file.read_text().splitlines()]
    assert messages == [None, "GET_FEATURES", None]


def test_reader_that_leaves_ends_it_quietly(directory: Path) -> None:
    with running(directory) as process:
        assert process.stdout is not None
        process.stdout.close()
        say_hello(directory)
        assert process.wait(SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_full_disk_is_said_in_one_line(directory: Path) -> None:
    with running(directory, "-o", "/dev/full") as process:
        say_hello(directory)
        assert process.wait(SECONDS) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "vhost-user trace: cannot print: No space left on device\n"


def test_reader_that_leaves_ends_it_also_where_nobody_says_anything(directory: Path) -> None:
    with running(directory) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(SECONDS) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
