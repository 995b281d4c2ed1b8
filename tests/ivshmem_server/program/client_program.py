"""ivshmem-client as its users run it: to its end, or line by line while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

import trio

from tests.ivshmem_server.clients import SECONDS
from tests.rig.programs import forked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

COMMAND = ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "ivshmem_server.program.client"]

# As users have it: what is printed waits in a buffer.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

# Even root needs permissions then.
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


@dataclass(frozen=True)
class Done:
    """What a client that has ended left."""

    code: int
    out: str
    err: str


class Running:
    """A client that runs. `running()` makes one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.stdin = _stream(process.stdin)
        self.stdout = _stream(process.stdout)
        self.stderr = _stream(process.stderr)
        self._buffer = bytearray()

    async def line(self) -> str:
        """Wait for the next line that it prints; the empty string once it prints no more."""
        with trio.fail_after(SECONDS):
            while (end := self._buffer.find(b"\n")) < 0:
                data = await self.stdout.receive_some()
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
        await self.stdin.send_all(text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    async def wait(self) -> int:
        """Wait for its end; return the exit code."""
        if self._process.poll() is None:
            pidfd = os.pidfd_open(self._process.pid)
            try:
                with trio.fail_after(SECONDS):
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._process.wait()

    async def end(self, stdin: bytes = b"") -> Done:
        """Give it all of its standard input, and wait for its end."""
        output: dict[str, bytes] = {}

        async def read(name: str, stream: trio.lowlevel.FdStream) -> None:
            output[name] = b"".join([data async for data in stream])

        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, "out", self.stdout)
                nursery.start_soon(read, "err", self.stderr)
                async with self.stdin:
                    if stdin:
                        await self.stdin.send_all(stdin)
        return Done(await self.wait(), output["out"].decode(), output["err"].decode())


@asynccontextmanager
async def running(
    *arguments: object, launcher: Sequence[str] = (), stdout: int | IO[bytes] = subprocess.PIPE
) -> AsyncIterator[Running]:
    """Run a client for the length of the block."""
    # Not trio's own way, which starts it from a thread: the parent-death signal comes when that ends.
    process = subprocess.Popen(  # noqa: ASYNC220
        [*launcher, *COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    client = Running(process)
    try:
        yield client
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await client.wait()
            for stream in (client.stdin, client.stdout, client.stderr):
                await stream.aclose()


def _stream(pipe: IO[bytes] | None) -> trio.lowlevel.FdStream:
    """Take over our end of a pipe; where there is none, one at its end."""
    with pipe or open(os.devnull, "rb") as file:  # noqa: PTH123
        return trio.lowlevel.FdStream(os.dup(file.fileno()))


async def run(*arguments: object, stdin: bytes = b"", powerless: bool = False) -> Done:
    """Run a client to its end; `powerless` is without root's capabilities."""
    if not powerless:
        argv = map(str, arguments)
        done = await trio.to_thread.run_sync(partial(forked.run, "ivshmem-client", *argv, stdin=stdin))
        return Done(done.returncode, done.stdout, done.stderr)
    async with running(*arguments, launcher=POWERLESS) as client:
        return await client.end(stdin)


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
