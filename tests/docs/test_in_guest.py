"""The guides' terminal sessions in a real guest: each command prints what the guide shows."""

from __future__ import annotations

import os
import pty
import shlex
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.words import plural
from tests.docs.documents import PROJECT, read, session
from tests.rig.guest import guest as rig
from tests.rig.guest import shell
from tests.rig.programs import process
from tests.rig.programs.backend import until_listening, until_printed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.docs.documents import Command

pytestmark = pytest.mark.guest

SECONDS = 60


def commands(name: str, *, on_host: bool) -> list[Command]:
    return [command for command in session(read(name)) if command.on_host == on_host]


def backend_command(text: str, directory: Path) -> list[str]:
    """Return the command line `text` as it is to run here, with its files in `directory`."""
    text = text.replace("/tmp/", f"{directory}/").replace(
        ".venv/bin/python examples", f"python {PROJECT}/examples"
    )
    text = text.replace("vhost-user-blk ", "python -m vhost_user.program.main run blk ")
    text = text.replace("vhost-user-rng ", "python -m vhost_user.program.main run rng ")
    program, *arguments = shlex.split(text)
    assert program == "python"
    return ["env", "-C", str(directory), sys.executable, *arguments]


@asynccontextmanager
async def backends(texts: list[str], directory: Path) -> AsyncIterator[list[process.Program]]:
    """Run back-ends by the guides' command lines; the block begins when all of them listen."""
    async with AsyncExitStack() as stack:
        programs = []
        for text in texts:
            argv = backend_command(text, directory)
            programs.append(await stack.enter_async_context(process.start(argv)))
            await until_listening(next(Path(word) for word in argv if word.endswith(".sock")))
        yield programs


def rng_arguments(directory: Path) -> list[str]:
    """Return QEMU's arguments for an rng as the guides have them."""
    chardev = f"socket,path={directory}/rng.sock,id=rng"
    return ["-chardev", chardev, "-device", "vhost-user-rng-pci,chardev=rng"]


def disk_arguments(directory: Path) -> list[str]:
    """Return QEMU's arguments for a disk as the guide has them."""
    chardev = f"socket,path={directory}/blk.sock,id=disk"
    return ["-chardev", chardev, "-device", "vhost-user-blk-pci,chardev=disk"]


async def printed_arguments(text: str, directory: Path) -> list[str]:
    """Return QEMU's arguments for a device alone, as its command line prints them."""
    argv = [*backend_command(text, directory), "--print-qemu-args"]
    printed = shlex.split((await trio.run_process(argv, capture_stdout=True)).stdout.decode())
    return printed[printed.index("-chardev") :]


def assert_in_documents(arguments: list[str], directory: Path, name: str) -> None:
    """What QEMU is told here is what the guide tells it."""
    shown = " ".join(command.text for command in commands(name, on_host=True)).replace(",reconnect=1", "")
    for argument in arguments:
        assert argument.replace(str(directory), "/tmp") in shown


async def run_in_guest(guest: rig.Guest, command: Command) -> None:
    script = f"{command.text}\ntrue"  # some are to fail
    assert await guest.sh(script, seconds=SECONDS) == command.output, command.text


async def test_your_own_device(directory: Path) -> None:
    name = "your-own-device.md"
    starts = [each.text for each in commands(name, on_host=True) if each.text.startswith(".venv/bin/python ")]
    arguments = rng_arguments(directory)
    assert_in_documents(arguments, directory, name)
    arguments += await printed_arguments(starts[1], directory)
    async with backends(starts, directory), rig.boot(*arguments, shared=True) as guest:
        for command in commands(name, on_host=False):
            await run_in_guest(guest, command)


async def test_vhost_user(directory: Path) -> None:
    name = "vhost-user.md"
    (directory / "disk.img").touch()
    os.truncate(directory / "disk.img", 1 << 30)
    faults = directory / "faults"
    faults.touch()
    starts = [each.text for each in commands(name, on_host=True) if each.text.startswith("vhost-user-")][:2]
    arguments = [*rng_arguments(directory), *disk_arguments(directory)]
    assert_in_documents(arguments, directory, name)
    async with backends(starts, directory) as (disk, _), rig.boot(*arguments, shared=True) as guest:
        for command in session(read(name)):
            if not command.on_host:
                await run_in_guest(guest, command)
            elif command.text.startswith("echo "):
                await set_faults(disk, faults, command.text)


async def set_faults(disk: process.Program, file: Path, command: str) -> None:
    """Do as `echo RULE > faults` does; return when the back-end has taken it over."""
    _, *rules = command.removesuffix(" > faults").split(" ")
    told = f" {plural(len(rules), 'fault')} from"
    before = disk.output().count(told)
    await trio.Path(file).write_text("".join(f"{rule}\n" for rule in rules) or "\n")
    await until_printed(disk, told, before + 1)  # perhaps after none, as it looked while the file was empty


async def test_make_guest_is_a_shell_on_the_terminal() -> None:
    """What one types is done, and Ctrl-A X ends it."""
    ours, theirs = pty.openpty()
    argv = shell.command(["-m", "300M", "-object", "memory-backend-memfd,id=mem,size=300M,share=on"])
    terminal = trio.lowlevel.FdStream(ours)
    async with terminal:
        running = await trio.lowlevel.open_process(argv, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        try:
            with trio.fail_after(2 * SECONDS):
                await read_until(terminal, b" # \x1b[6n")  # it has asked where the cursor is
                await terminal.send_all(b"expr 6 '*' 7\r")
                await read_until(terminal, b"\n42\r")
                await terminal.send_all(b"\x01x")
                assert await running.wait() == 0
        finally:
            running.kill()
            with trio.CancelScope(shield=True):
                await running.wait()


async def read_until(stream: trio.lowlevel.FdStream, text: bytes) -> None:
    seen = b""
    while text not in seen:
        part = await stream.receive_some()
        assert part, seen
        seen += part
