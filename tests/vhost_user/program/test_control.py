"""`vhost-user control` and --control, each program run as its users run it; many devices in one program."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import vhost_user
from protocol.io import connect
from tests.rig.programs import process
from tests.rig.programs.backend import (
    BackendStartError,
    command,
    start_backend,
    start_program,
    until_printed,
)
from tests.vhost_user.program.cli_program import refusal
from tests.vhost_user.raw_frontend import Frontend
from tests.vhost_user.simulation.lamp import Lamps
from vhost_user.simulation.control_client import connect as connect_control

if TYPE_CHECKING:
    from collections.abc import Iterator

LAMPS = "tests.vhost_user.simulation.lamp:LampsProgram"
SECONDS = 60


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, as a socket's path is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vu-") as path:
        yield Path(path)


@pytest.fixture
def control(directory: Path) -> Path:
    return directory / "control"


def argv(path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vhost_user.program.main", "control", str(path), *arguments]


async def run(path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `vhost-user control` to its end; return its exit code and what it printed."""
    with trio.fail_after(SECONDS):
        result = await trio.run_process(
            argv(path, *arguments), capture_stdout=True, capture_stderr=True, check=False
        )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


async def test_calls_events_and_help(directory: Path, control: Path) -> None:
    async with start_backend(directory, LAMPS, "--control", str(control)):
        assert await run(control, "state", "--on", "hall") == (0, '{"on": false}\n', "")
        assert await run(control, "--on", "hall", "switch", "true", "brightness=7") == (0, "null\n", "")
        assert await run(control, "state", "--on", "hall") == (0, '{"on": true}\n', "")
        code, printed, _ = await run(control, "--on", "attic/left", "echo", "5", "text=a=b", "2.5", "00ff")
        assert (code, json.loads(printed)[:4]) == (0, [5, 2.5, "a=b", "00ff"])
        for text, number in {"0x1F": 31, "number=-0X10": -16}.items():  # as data sheets have them
            code, printed, _ = await run(control, "--on", "hall", "echo", "--", text)
            assert (code, json.loads(printed)[0]) == (0, number)
        code, printed, _ = await run(control)
        assert code == 0
        assert "flood(count: int)  Emit that many events." in printed.splitlines()
        assert (
            "[--on hall] switch(lit: bool, brightness: int = 100)  Switch it on or off."
            in printed.splitlines()
        )
        async with process.start(argv(control, "--events", "flood", "2")) as watcher:
            await until_printed(watcher, "drop", 2)
            await run(control, "--on", "hall", "switch", "false")
            await until_printed(watcher, "light")
            assert watcher.output().splitlines() == [
                "null",
                '{"event": "drop", "data": {"number": 0}}',
                '{"event": "drop", "data": {"number": 1}}',
                '{"event": "light", "on": "hall", "data": {"lit": false, "brightness": 100}}',
            ]
    assert not control.exists()


async def test_errors_are_one_line(directory: Path, control: Path) -> None:
    async with start_backend(directory, LAMPS, "--control", str(control)):
        for arguments, complaint in [
            (["switch", "--on", "hall", "maybe"], "switch: lit is 'maybe'; it has to be bool"),
            (["echo", "--on", "hall", "0xg"], "echo: number is '0xg'; it has to be int or null"),
            (["switch", "--on", "hall", "true", "0"], "0 is no percentage from 1 to 100"),
            (["switch", "--on", "hall"], "switch: missing a required argument: 'lit'; it takes ("),
            (["state", "--on", "hall", "1"], "'1' is one argument too many; the call takes ()"),
            (["melt"], "there is no call 'melt'; there are flood"),
            (["melt", "1"], "there is no call 'melt'; there are flood"),
            (["state", "--on", "cellar"], "there is no part 'cellar'; there are attic, hall"),
        ]:
            code, printed, errors = await run(control, *arguments)
            (line,) = errors.splitlines()
            assert (code, printed) == (1, "")
            assert line.startswith("vhost-user") and complaint in line  # noqa: PT018 -- one line
    code, printed, errors = await run(control, "state")
    assert (code, printed) == (1, "")
    assert errors == (
        f"vhost-user: cannot connect to {control}: No such file or directory;"
        " start a device with this --control\n"
    )


async def test_the_program_ends_under_a_client(directory: Path, control: Path) -> None:
    async with (
        start_backend(directory, LAMPS, "--control", str(control)) as backend,
        process.start(argv(control, "--events", "flood", "0")) as watcher,
    ):
        await until_printed(watcher, "null")
        backend.program.kill()
        with trio.fail_after(SECONDS):
            assert await watcher.wait() == 1
        assert watcher.output() == (
            "null\nvhost-user control: the program has closed the control socket; see what it printed\n"
        )


def test_control_socket_has_a_path_of_its_own(control: Path) -> None:
    said = refusal("run", LAMPS, "--socket-path", str(control), "--control", str(control), code=2)
    assert f"argument --control: {control} is given for two sockets; give each a path of its own" in said


async def test_events_end_when_nobody_reads_them(directory: Path, control: Path) -> None:
    reader, writer = os.pipe()
    async with start_backend(directory, LAMPS, "--control", str(control)):
        os.close(reader)
        with os.fdopen(writer, "wb") as nowhere, trio.fail_after(SECONDS):
            done = await trio.run_process(
                argv(control, "--events"), stdout=nowhere, capture_stderr=True, check=False
            )
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("what", ["used", "missing", "nothing simulated"])
async def test_control_sockets_that_cannot_be(directory: Path, control: Path, what: str) -> None:
    device, path = LAMPS, control
    complaint = f"socket {control} is in use by another program; stop it or choose another path"
    if what == "missing":
        path = directory / "none" / "control"
        complaint = f"cannot listen on {path}: No such file or directory; create the directory first"
    if what == "nothing simulated":
        device, complaint = "rng", "nothing is simulated behind rng to be changed; leave out --control"
    async with start_backend(directory, LAMPS, "--control", str(control)):
        with pytest.raises(BackendStartError) as caught:
            async with start_backend(directory, device, "--control", str(path), name="second"):
                pass
    assert str(caught.value) == f"vhost-user run {device}: {complaint}\n"
    assert not (directory / "second.sock").exists()


async def test_many_sockets_with_one_simulation(directory: Path, control: Path) -> None:
    base = directory / "lamps"
    options = ["--socket-path", str(base), "--socket-count", "3", "--control", str(control)]
    async with start_program(directory, command(LAMPS, *options), "lamps") as program:
        frontends = [Frontend(await connect(f"{base}{number}")) for number in range(3)]
        for frontend in frontends:
            queue = await frontend.start()
            await queue.exchange([], [64])
        async with connect_control(control) as client:
            await client.call("switch", on="hall", lit=True)
            assert await client.call("state", on="hall") == {"on": True}
        assert [line.rpartition(" ")[2] for line in program.output().splitlines() if "listening" in line] == [
            f"{base}{number}" for number in range(3)
        ]
        for frontend in frontends:
            frontend.close()
        program.terminate()
        with trio.fail_after(SECONDS):
            assert await program.wait() == 0
    assert sorted(path.name for path in directory.iterdir()) == ["lamps.notify"]


async def test_a_socket_of_many_that_is_in_use(directory: Path) -> None:
    base = directory / "lamps"
    options = ["--socket-path", str(base), "--socket-count", "2"]
    async with start_backend(directory, "rng", name="x") as other:
        other.socket.rename(f"{base}1")
        with pytest.raises(BackendStartError, match=f"socket {base}1 is in use by another program"):
            async with start_program(directory, command(LAMPS, *options), "lamps"):
                pass
        assert not Path(f"{base}0").exists()
        Path(f"{base}1").rename(other.socket)


def test_qemu_options_for_each_of_many() -> None:
    options = ["--socket-path", "/tmp/lamp,s", "--socket-count", "2", "--print-qemu-args"]
    result = subprocess.run(command(LAMPS, *options), capture_output=True, text=True, timeout=60, check=True)
    first, second = result.stdout.splitlines()
    assert "path=/tmp/lamp,,s0" in first
    assert second == first.replace("s0 ", "s1 ").replace("s0'", "s1'")


def test_socket_count_needs_a_path() -> None:
    result = subprocess.run(
        command(LAMPS, "--fd", "3", "--socket-count", "2"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "--socket-count needs --socket-path" in result.stderr


class Hosting(Lamps):
    """A device that has something to do on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.state = "new"
        self.changed = trio.Event()

    async def run_host(self) -> None:
        self.state = "runs"
        self.changed.set()
        try:
            await trio.sleep_forever()
        finally:
            self.state = "ended"


async def test_the_host_side_runs_from_start_to_end(directory: Path) -> None:
    device = Hosting()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(vhost_user.serve, device, socket_path=directory / "s"))
            await device.changed.wait()
            for _ in range(2):
                frontend = Frontend(await connect(str(directory / "s")))
                queue = await frontend.start()
                await queue.exchange([], [64])
                frontend.close()
                assert device.state == "runs"
            nursery.cancel_scope.cancel()
    assert device.state == "ended"


async def test_the_host_side_ends_with_a_connection_that_was_inherited() -> None:
    ours, theirs = socket.socketpair()
    device = Hosting()
    with ours, trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(vhost_user.serve, device, fd=theirs.detach()))
            await device.changed.wait()
            ours.close()
    assert device.state == "ended"
