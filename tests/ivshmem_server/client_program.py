"""ivshmem-client as its users run it: to its end, or line by line while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.ivshmem_server.clients import SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# As users have it: what is printed waits in a buffer.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

# Even root needs permissions then.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

COMMAND = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "ivshmem_server.client_cli"]


@dataclass(frozen=True)
class Done:
    """What a client that has ended left."""

    code: int
    out: str
    err: str


async def run(*arguments: object, stdin: bytes = b"", powerless: bool = False) -> Done:
    """Run a client to its end; `powerless` is without root's capabilities."""
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            [*(POWERLESS if powerless else []), *COMMAND, *map(str, arguments)],
            stdin=stdin,
            env=ENVIRONMENT,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


async def output(*arguments: object, stdin: bytes = b"") -> str:
    """Run a client that must succeed and say nothing on standard error; return what it printed."""
    done = await run(*arguments, stdin=stdin)
    assert (done.code, done.err) == (0, ""), done
    return done.out


async def error(*arguments: object, code: int = 1) -> str:
    """Run a client that must fail, print nothing, and say why in one line; return that line."""
    done = await run(*arguments)
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("ivshmem-client"), done
    assert done.err.count("\n") == 1, done
    return done.err


class Running:
    """A client that runs. `running()` makes one."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._buffer = bytearray()

    async def line(self) -> str:
        """Wait for the next line that it prints; the empty string once it prints no more."""
        assert self.process.stdout is not None
        with trio.fail_after(SECONDS):
            while (end := self._buffer.find(b"\n")) < 0:
                data = await self.process.stdout.receive_some()
                if not data:
                    return ""
                self._buffer += data
        line = self._buffer[:end].decode()
        del self._buffer[: end + 1]
        return line

    async def line_with(self, text: str) -> str:
        """Wait for a line that has `text` in it."""
        while text not in (line := await self.line()):
            assert line, f"the client ended without a line with '{text}'"
        return line

    async def type(self, text: str) -> None:
        """Send `text` to its standard input."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(text.encode())

    async def wait(self) -> int:
        """Wait for its end; return the exit code."""
        with trio.fail_after(SECONDS):
            return await self.process.wait()


@asynccontextmanager
async def running(*arguments: object) -> AsyncIterator[Running]:
    """Run a client for the length of the block; standard error goes where standard output goes."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Running(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
