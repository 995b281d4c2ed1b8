"""Child processes of a test, killed and reaped when the block or the test process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

CLOSED = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
"""Runs the command behind it without standard input, output and error."""


class Program:
    """A running child process. `start()` makes one and owns it."""

    def __init__(
        self, process: subprocess.Popen[bytes], output: IO[bytes], *, own_group: bool = False
    ) -> None:
        self._process = process
        self._output = output
        self._own_group = own_group
        self.killed = False
        """True once `kill()` was called."""

    @property
    def pid(self) -> int:
        """The process id, that of the program itself: launchers before it have exec'ed."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """True once it has ended."""
        return self._process.poll() is not None

    def output(self) -> str:
        """Return everything the program has printed so far, standard error included."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    def kill(self) -> None:
        """Kill it at once, as `kill -9` does, and with it the group of its own that it may have.

        To no effect if it has ended.
        """
        self.killed = True
        self._process.kill()
        if self._own_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); to no effect if it has ended."""
        self._process.terminate()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold it for the length of the block (SIGSTOP): it runs no instruction, and reads nothing."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the number of the signal that killed it."""
        if self._process.returncode is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the CPU time that all its threads have used so far, to a hundredth of a second."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def file_descriptors(self) -> int:
        """Return how many file descriptors it holds open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208


@asynccontextmanager
async def start(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    own_group: bool = False,
) -> AsyncIterator[Program]:
    """Run `argv` for the length of the block; kill it at the end if it still runs.

    `env` is added to the environment. With `own_group`, its children are killed with it.

    If the block fails, what the program printed goes to standard error, where pytest shows it. The
    kernel kills the program too when the test process dies without leaving the block.
    """
    with tempfile.TemporaryFile() as output:
        program = Program(_popen(argv, output, pass_fds, env, own_group), output, own_group=own_group)
        try:
            yield program
        except trio.Cancelled:
            raise  # by the failure of somebody else, which is told already
        except BaseException:
            print(f"--- {argv[0]} (pid {program.pid}) printed:\n{program.output()}", file=sys.stderr)
            raise
        finally:
            program.kill()
            with trio.CancelScope(shield=True):
                await program.wait()


def _popen(
    argv: Sequence[str],
    output: IO[bytes],
    pass_fds: Sequence[int],
    env: Mapping[str, str] | None,
    own_group: bool,
) -> subprocess.Popen[bytes]:
    """Start `argv` from the calling thread: the parent-death signal follows the thread, not the process."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        env={**os.environ, **(env or {})},
        start_new_session=own_group,
    )


async def is_ready(program: Program, notify: trio.socket.SocketType, seconds: float) -> bool:
    """Wait until a program says READY=1 at `notify` (sd_notify(3)); False if it ends instead.

    Raises trio.TooSlowError after so many seconds.
    """
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:

            async def give_up_when_it_ends() -> None:
                await program.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up_when_it_ends)
            while b"READY=1" not in (await notify.recv(4096)).splitlines():
                pass
            nursery.cancel_scope.cancel()
    return not program.ended
