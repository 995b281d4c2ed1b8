"""A program's own terminal, or its pipes, as a console: raw meanwhile, and as it was afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
from contextlib import asynccontextmanager, contextmanager
from typing import IO, TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.programs.backend import command
from tests.vhost_user.devices.console.driver import until
from tests.vhost_user.devices.console.ends import SECONDS, resize, running
from vhost_user.devices.console.stdio import Escape, StdioHost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vhost_user.devices.console.port import ConsolePort

LOCAL = 3
"""Where the flags for echo and lines are in what tcgetattr() returns."""


def typed(*pieces: bytes) -> tuple[bytes, bool]:
    escape = Escape()
    passed = b"".join(escape.filter(piece) for piece in pieces)
    return passed, escape.has_quit


def test_commands_are_found_in_what_is_typed() -> None:
    assert typed(b"abc") == (b"abc", False)
    assert typed(b"a\x01x") == (b"a", True)
    assert typed(b"a\x01", b"X") == (b"a", True)
    assert typed(b"a\x01\x01x") == (b"a\x01x", False)
    assert typed(b"a\x01", b"b") == (b"a\x01b", False)


@given(st.lists(st.sampled_from([b"\x01", b"a", b"b"])), st.integers(1, 5))
def test_it_makes_no_difference_how_it_comes(keys: list[bytes], size: int) -> None:
    data = b"".join(keys)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert typed(*pieces) == typed(data)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Make a terminal; yield the end of who sits there, and the program's."""
    ours, theirs = os.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


async def given_input(port: ConsolePort, size: int) -> bytes:
    await until(lambda: port.input_size >= size)
    return port.take_input(size)


async def shown_at(fd: int, size: int) -> bytes:
    """Return what is put out there, so many bytes, in however many pieces it comes."""
    data = b""
    while len(data) < size:
        await trio.lowlevel.wait_readable(fd)
        data += os.read(fd, 4096)
    return data


def is_raw(fd: int) -> bool:
    return not termios.tcgetattr(fd)[LOCAL] & (termios.ICANON | termios.ECHO | termios.ISIG)


async def test_terminal_is_raw_meanwhile_and_its_size_is_the_consoles() -> None:
    with terminal() as (ours, theirs):
        resize(ours, 100, 30)
        before = termios.tcgetattr(theirs)
        async with running(StdioHost(theirs, theirs), is_console=True) as port:
            await until(lambda: port.state.size == (100, 30))
            assert is_raw(theirs)
            os.write(ours, b"\x03\n\x04")
            assert await given_input(port, 3) == b"\x03\n\x04"
            port.put_output(b"login: ")
            assert await shown_at(ours, 7) == b"login: "
            resize(ours, 120, 40)
            signal.raise_signal(signal.SIGWINCH)  # as the kernel does for a terminal that is ours
            await until(lambda: port.state.size == (120, 40))
            termios.tcsetattr(theirs, termios.TCSANOW, before)
            signal.raise_signal(signal.SIGCONT)
            await until(lambda: is_raw(theirs))
        assert termios.tcgetattr(theirs) == before
        assert os.get_blocking(theirs)


async def test_command_to_quit_interrupts_the_program() -> None:
    with (
        terminal() as (ours, theirs),
        trio.open_signal_receiver(signal.SIGINT) as signals,
    ):
        async with running(StdioHost(theirs, theirs), is_console=True) as port:
            await until(lambda: is_raw(theirs))
            os.write(ours, b"ls\n\x01x")
            assert await given_input(port, 3) == b"ls\n"
            assert await anext(aiter(signals)) == signal.SIGINT
        assert not is_raw(theirs)


async def test_pipes_pass_all_bytes_and_may_end(tmp_path: Path) -> None:
    data = bytes(range(256))
    (typed_in, typing), (shown, showing) = os.pipe(), os.pipe()
    os.write(typing, data)
    os.close(typing)
    async with running(StdioHost(typed_in, showing), is_console=True) as port:
        assert await given_input(port, 256) == data
        port.put_output(data)
        assert await shown_at(shown, 256) == data
        assert port.state.host_open
    assert all(os.get_blocking(fd) for fd in (typed_in, showing))
    for fd in (typed_in, shown, showing):
        os.close(fd)


async def test_files_are_read_and_written_from_where_they_are(tmp_path: Path) -> None:
    """As by a shell that has read, or written, some of them before: `>>`, or `<` in a loop."""
    (tmp_path / "typed").write_bytes(b"for others for the guest")
    (tmp_path / "shown").write_bytes(b"before ")
    with (tmp_path / "typed").open("rb", buffering=0) as stdin, (tmp_path / "shown").open("ab") as stdout:
        stdin.read(len(b"for others "))
        async with running(StdioHost(stdin.fileno(), stdout.fileno()), is_console=True) as port:
            assert await given_input(port, 13) == b"for the guest"
            port.put_output(b"and after")
            await until(lambda: (tmp_path / "shown").read_bytes() == b"before and after")


async def test_reader_that_has_gone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    shown, showing = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.close(shown)
    async with running(StdioHost(nothing, showing), is_console=True) as port:
        port.put_output(b"data")
        await until(lambda: "cannot write to standard output: Broken pipe" in caplog.text)
        assert not port.state.host_open
    os.close(showing)
    os.close(nothing)


@asynccontextmanager
async def program(
    directory: Path, terminal: int, *, stderr: IO[bytes] | int = subprocess.DEVNULL
) -> AsyncIterator[trio.Process]:
    """Run the console device on a terminal that is its own, without any option but the socket."""
    argv = command("console", "--socket-path", str(directory / "console.sock"))
    process = await trio.lowlevel.open_process(
        ["setsid", "--ctty", *argv], stdin=terminal, stdout=terminal, stderr=stderr
    )
    try:
        with trio.fail_after(SECONDS):
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.mark.parametrize("end", ["SIGTERM", "Ctrl-A X"])
async def test_terminal_is_restored_in_the_end(directory: Path, end: str) -> None:
    with terminal() as (ours, theirs):
        before = termios.tcgetattr(theirs)
        async with program(directory, theirs) as process:
            await until_raw(theirs)
            if end == "Ctrl-A X":
                os.write(ours, b"\x01x")
            else:
                process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert termios.tcgetattr(theirs) == before
    assert os.listdir(directory) == []  # noqa: PTH208


async def until_raw(fd: int) -> None:
    with trio.fail_after(SECONDS):
        while not is_raw(fd):  # noqa: ASYNC110 -- another process makes it so
            await trio.sleep(0.01)


async def test_terminal_that_is_gone_ends_the_program_cleanly(directory: Path) -> None:
    """As where a window is closed, or a connection breaks: nothing is left to be restored."""
    ours, theirs = os.openpty()
    with (directory / "log").open("wb") as log:
        async with program(directory, theirs, stderr=log) as process:
            await until_raw(theirs)
            os.close(theirs)
            os.close(ours)
            assert await process.wait() == 0
    assert "Traceback" not in (directory / "log").read_text()
    assert os.listdir(directory) == ["log"]  # noqa: PTH208
