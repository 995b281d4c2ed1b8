"""ivshmem-client without a command: lines from a pipe, and a person at a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import ivshmem_server
from tests.ivshmem_server.clients import SECONDS, serving
from tests.ivshmem_server.program.client_program import output, running
from tests.ivshmem_server.scripted import SETUP, US, scripted
from tests.rig.programs.server import start_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server"


async def test_commands_come_line_by_line_or_with_semicolons(path: Path) -> None:
    async with serving(path, vectors=2), ivshmem_server.connect(path) as peer:
        said = await output("-S", path, stdin=b" dump ;int 0 1;;\n\nint 0x0 all\nint all")
        assert said.splitlines() == [
            f"connected to {path} as peer 1",
            "us: peer 1, 2 vectors",
            "memory: 1 MiB",
            "peer 0: 2 vectors",
        ]
        assert await peer.wait(0) == 2
        assert await peer.wait(1) == 3


async def test_help_shows_the_commands(path: Path) -> None:
    async with serving(path):
        said = await output("-S", path, stdin=b"help\n")
    assert re.findall(r"^(int all|int PEER all|int PEER VECTOR|dump|help) ", said, re.MULTILINE) == [
        "dump",
        "int PEER VECTOR",
        "int PEER all",
        "int all",
        "help",
    ]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nonsense 1", "'nonsense 1' is not a command; try help"),
        ("int", "'int' is not a command; try help"),
        ("int 7 0", "peer 7 is not connected; besides us, peer 0, there is nobody"),
        ("int 0 9", "we have no vector 9, only 0..0"),
        ("int x 0", "'x' is not a number; write it as 4096 or 0x1000"),
    ],
)
async def test_mistake_is_told_and_the_next_command_obeyed(path: Path, command: str, said: str) -> None:
    async with serving(path):
        lines = (await output("-S", path, stdin=f"{command}; dump\n".encode())).splitlines()
    assert lines[1:3] == [said, "us: peer 0, 1 vector"]


async def test_empty_input_ends_it_even_without_a_server(path: Path) -> None:
    async with running("-S", path) as client:
        await client.stdin.aclose()
        assert await client.wait() == 0


async def test_what_happens_is_printed_as_it_comes(path: Path) -> None:
    async with serving(path, vectors=2), running("-S", path) as client:
        await client.line_with("connected")
        async with ivshmem_server.connect(path) as other:
            assert await client.line() == "peer 1 joined with 2 vectors"
            other.ring(0, 1)
            assert await client.line() == "receive notification vector=1 count=1"
        assert await client.line() == "peer 1 left"


async def test_it_keeps_trying_until_there_is_a_server(path: Path) -> None:
    async with running("-S", path) as client:
        await client.type("dump\n")
        said = await client.line()
        assert said.startswith(f"no server listens on {path}; ")
        assert said.endswith("trying again every 1 s")
        async with serving(path):
            assert await client.line() == f"connected to {path} as peer 0"
            assert await client.line() == "us: peer 0, 1 vector"


async def test_it_joins_a_new_server_and_rings_old_peers_until_then(tmp_path: Path) -> None:
    async with (
        running("-S", tmp_path / "ivshmem.sock") as client,
        start_server(tmp_path, memfd=True) as server,
        ivshmem_server.connect(server.socket) as peer,
    ):
        old_id = 1 - peer.id
        await client.line_with(f"as peer {old_id}")
        server.program.kill()
        await server.program.wait()
        await client.line_with("the server has gone; doorbells go on")
        await client.type(f"int {peer.id} 0\n")
        with trio.fail_after(SECONDS):
            assert await peer.wait() == 1
        peer.ring(old_id)
        assert await client.line_with("receive") == "receive notification vector=0 count=1"
        async with serving(server.socket, vectors=3):
            await client.line_with("as peer 0")
            peer.ring(old_id)  # is not heard any more
            await client.type("dump\n")
            assert await client.line() == "us: peer 0, 3 vectors"


async def test_all_others_does_not_mean_us(path: Path) -> None:
    async with serving(path), ivshmem_server.connect(path) as peer, running("-S", path) as client:
        await client.line_with("as peer 1")
        await client.type("int all\n")
        with trio.fail_after(SECONDS):
            assert await peer.wait() == 1
        await client.type("dump\n")
        assert await client.line() == "us: peer 1, 1 vector"


async def test_it_tries_again_after_a_fault_of_the_server(path: Path) -> None:
    async with running("-S", path) as client:
        async with scripted(path, *SETUP) as server:
            await client.line_with(f"as peer {US}")
            await server.send((-3,))
            assert "a peer id was due" in await client.line()
            await client.type("dump\n")
            assert await client.line_with("not connected") == f"not connected to {path}; wait for a server"
        async with serving(path):
            await client.line_with("as peer 0")


# At a terminal


class Terminal:
    """The person's side of a terminal on which a client runs."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = ""

    async def expect(self, pattern: str) -> None:
        """Wait until `pattern` has come up since the last match."""
        with trio.fail_after(SECONDS):
            while not (match := re.search(pattern, self.seen)):
                await trio.lowlevel.wait_readable(self.fd)
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen[match.end() :]

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.fd, text.encode("latin-1"))

    def echoes(self) -> bool:
        """Whether the terminal is as a shell wants it: it echoes, and gives whole lines."""
        flags: int = termios.tcgetattr(self.fd)[3]
        return flags & (termios.ECHO | termios.ICANON) == termios.ECHO | termios.ICANON


@asynccontextmanager
async def at_terminal(path: Path, encoding: str = "utf-8") -> AsyncIterator[tuple[Terminal, int]]:
    """Run a client on a terminal of its own during the block, which gets that and the process id."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "PYTHONIOENCODING": encoding}
        os.execv(sys.executable, [sys.executable, "-m", "ivshmem_server.program.client", "-S", str(path)])
    try:
        yield Terminal(fd), pid
    finally:
        os.close(fd)
        os.kill(pid, signal.SIGKILL)
        _reap(pid)


def _reap(pid: int) -> None:
    os.waitpid(pid, 0)


async def exit_code(pid: int) -> int:
    """Wait for the end of a child; return its exit code. It stays to be reaped."""
    pidfd = os.pidfd_open(pid)
    try:
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(pidfd)
        return _exit_code(pidfd)
    finally:
        os.close(pidfd)


def _exit_code(pidfd: int) -> int:
    status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert status is not None
    return status.si_status


async def test_line_that_is_being_typed_survives_what_is_printed(path: Path) -> None:
    async with serving(path), at_terminal(path) as (terminal, _):
        await terminal.expect("as peer 0\r\ncmd> ")
        terminal.type("int 1")
        await terminal.expect("int 1")
        async with ivshmem_server.connect(path) as peer:
            await terminal.expect("\r\x1b\\[Kpeer 1 joined with 1 vector\r\ncmd> int 1")
            terminal.type(" 0\r")
            with trio.fail_after(SECONDS):
                assert await peer.wait() == 1


async def test_lines_can_be_edited_and_recalled(path: Path) -> None:
    async with serving(path), at_terminal(path) as (terminal, _):
        await terminal.expect("as peer 0\r\ncmd> ")
        terminal.type("ump\x01d\r")  # Ctrl-A: to the start of the line
        await terminal.expect("us: peer 0, 1 vector")
        terminal.type("\x1b[A\r")  # the key with the arrow upwards
        await terminal.expect("us: peer 0, 1 vector")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
async def test_what_is_typed_in_no_encoding_is_no_command(path: Path, encoding: str) -> None:
    async with serving(path), at_terminal(path, encoding) as (terminal, _):
        await terminal.expect("as peer 0\r\ncmd> ")
        terminal.type("d\xfc\r")
        await terminal.expect("is not a command; try help\r\ncmd> ")
        terminal.type("dump\r")
        await terminal.expect("us: peer 0, 1 vector")


async def test_end_of_input_leaves(path: Path) -> None:
    async with serving(path), at_terminal(path) as (terminal, pid):
        await terminal.expect("as peer 0\r\ncmd> ")
        terminal.type("\x04")
        assert await exit_code(pid) == 0
        assert terminal.echoes()


async def test_ctrl_c_leaves_the_terminal_as_it_was(path: Path) -> None:
    async with serving(path), at_terminal(path) as (terminal, pid):
        await terminal.expect("as peer 0\r\ncmd> ")
        terminal.type("x")
        await terminal.expect("x")
        assert not terminal.echoes()
        terminal.type("\x03")
        assert await exit_code(pid) == 130
        assert terminal.echoes()
