"""The log of ivshmem-server: in a file that is rotated, with its beginning and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio

from tests.ivshmem_server.clients import Client
from tests.ivshmem_server.program.server_program import COMMAND, daemon, run
from tests.rig.programs.backend import until_printed
from tests.rig.programs.process import start
from tests.rig.programs.server import memory_name, start_server
from tests.rig.programs.terminal import start_in_terminal

if TYPE_CHECKING:
    from pathlib import Path


async def until_there(path: Path, text: str) -> None:
    """Wait until a file has this text."""
    with trio.fail_after(60):
        while not path.exists() or text not in path.read_text():  # noqa: ASYNC110 -- another process writes it
            await trio.sleep(0.01)


def test_log_file_of_a_daemon_tells_who_came(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with daemon(tmp_path, "-v", "--log-file", str(log)) as path, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        assert sock.recv(8) == bytes(8)
    assert f"peer 0 (pid {os.getpid()}, uid {os.getuid()}) joined" in log.read_text()


async def test_rotated_log_goes_on_and_no_client_notices(tmp_path: Path) -> None:
    log, old = tmp_path / "log", tmp_path / "log.1"
    with daemon(tmp_path, "-v", "--log-file", str(log)) as path:
        first = await Client.joined(path)
        pid = int((tmp_path / "pid").read_text())
        log.rename(old)
        os.kill(pid, signal.SIGHUP)
        await until_there(log, "")
        second = await Client.joined(path)
        await until_there(log, "peer 1 (pid")
        assert "peer 1" not in old.read_text()
        _, (doorbell,) = await first.stream.receive(8, max_fds=1)  # it is told of the second one
        doorbell.close()
        first.close()
        second.close()
    await until_there(log, ": ended by SIGTERM; ")


async def test_hangup_ends_no_daemon_that_has_no_log(tmp_path: Path) -> None:
    with daemon(tmp_path) as path:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGHUP)
        client = await Client.joined(path)
        client.close()


async def test_hangup_ends_no_service_in_the_foreground(tmp_path: Path) -> None:
    async with start_server(tmp_path, launcher=["setsid"]) as server:
        client = await Client.joined(server.socket)
        os.kill(server.program.pid, signal.SIGHUP)
        os.kill(server.program.pid, signal.SIGUSR1)
        await until_printed(server.program, ": status")
        client.close()


async def test_server_ends_with_its_terminal(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    argv = [*COMMAND, "-F", "-S", str(path), "-M", memory_name(tmp_path), "--log-file", str(tmp_path / "log")]
    async with start_in_terminal(argv) as (program, terminal):
        await until_there(tmp_path / "log", "listening on")
        os.kill(program.pid, signal.SIGHUP)
        os.kill(program.pid, signal.SIGUSR1)
        await until_there(tmp_path / "log", "status")  # the terminal is there: nothing ended
        terminal.close()
        with trio.fail_after(60):
            assert await program.wait() == 0
    assert (tmp_path / "log").read_text().endswith(": ended by SIGHUP; 0 connected\n")
    assert not path.exists()


@pytest.mark.parametrize("foreground", [True, False])
def test_failed_start_is_in_the_log(tmp_path: Path, foreground: bool) -> None:
    log = tmp_path / "log"
    options = ["-F"] if foreground else ["-p", f"{tmp_path}/pid"]
    (tmp_path / "socket").touch()
    done = run("-S", f"{tmp_path}/socket", "--memfd", "--log-file", str(log), *options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    (logged,) = log.read_text().splitlines()
    assert logged.endswith(f" ivshmem-server: error: cannot start: {line.removeprefix('ivshmem-server: ')}")


async def test_daemon_whose_path_is_in_no_encoding_says_why_it_does_not_start(tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff/socket")
    async with start([*COMMAND, "-S", strange, "--memfd", "-p", f"{tmp_path}/pid"]) as program:
        with trio.fail_after(60):
            assert await program.wait() == 1
        (line,) = program.output().splitlines()
    assert line.startswith("ivshmem-server: cannot listen on ")
    assert "No such file or directory; create the directory first" in line


def test_path_that_is_in_no_encoding_is_printed_as_it_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "-S", b"/tmp/\xff", "--print-qemu-args"], capture_output=True, check=True
    )
    assert b"path=/tmp/\xff" in done.stdout
