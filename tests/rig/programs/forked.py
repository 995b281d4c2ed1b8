"""Runs our programs in processes forked from one that has imported them already.

Starting Python and importing a program takes a third of a second, and hundreds of tests run one to read
a line of it. Here the program begins with its main function, in a process of its own: standard streams,
directory, exit code and signals are its own. What happens before, such as closed standard streams, and
what a launcher changes, is for tests that start Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

SECONDS = 60
PROGRAMS = {
    "vhost-user": "vhost_user.program.main",
    "ivshmem-server": "ivshmem_server.program.server",
    "ivshmem-client": "ivshmem_server.program.client",
}
_PR_SET_PDEATHSIG = 1
_EXITED = struct.Struct("i")
_MOST = 1 << 18
"""Bytes of a request: a command line and an environment."""


class Forker:
    """The process that others are forked from; `close()` ends it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        with theirs:
            argv = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], start_new_session=True)

    def run(
        self, program: str, *argv: str, stdin: bytes = b"", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program: see `run()`."""
        with contextlib.ExitStack() as stack:
            given, out, error = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            with theirs:
                request = [program, argv, str(cwd or Path.cwd()), dict(os.environ)]
                fds = [each.fileno() for each in (given, out, error, theirs)]
                socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            code = self._wait(ours, [program, *argv])
            return subprocess.CompletedProcess([program, *argv], code, _text(out), _text(error))

    def close(self) -> None:
        """End the process."""
        self._socket.close()  # it reads the end then
        self._process.wait(SECONDS)

    def _wait(self, ours: socket.socket, what: list[str]) -> int:
        """Return the exit code, or minus the signal, of the process at the other end."""
        ours.settimeout(SECONDS)
        (pid,) = _EXITED.unpack(ours.recv(_EXITED.size, socket.MSG_WAITALL))
        try:
            (status,) = _EXITED.unpack(ours.recv(_EXITED.size, socket.MSG_WAITALL))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(what, SECONDS) from None
        return os.waitstatus_to_exitcode(status)


_forker: list[Forker] = []


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Let `run()` be called in the block."""
    _forker.append(Forker())
    try:
        yield
    finally:
        _forker.pop().close()


def run(
    program: str, *argv: str, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of PROGRAMS with these arguments to its end, as subprocess.run() does.

    Several threads may do so at a time.
    """
    return _forker[-1].run(program, *argv, stdin=stdin, cwd=cwd)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request, and one that waits for it, and tells of its pid and its end."""
    mains = {name: importlib.import_module(module).main for name, module in PROGRAMS.items()}
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _MOST, 4)
        if not data:
            return
        if not os.fork():
            _end_with_parent()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            *streams, answer = fds
            if not (pid := os.fork()):
                os.close(answer)
                _run(mains[json.loads(data)[0]], data, streams)
            os.write(answer, _EXITED.pack(pid))
            os.write(answer, _EXITED.pack(os.waitpid(pid, 0)[1]))
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(main: Callable[[], object], request: bytes, streams: list[int]) -> NoReturn:
    """Be the program."""
    _end_with_parent()
    program, argv, cwd, environment = json.loads(request)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    sys.argv = [program, *argv]
    code: object = 1
    try:
        code = main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:  # as the interpreter does it
        sys.excepthook(*sys.exc_info())
    finally:
        if code is None or isinstance(code, int):
            number = code or 0
        else:
            print(code, file=sys.stderr)
            number = 1
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(number & 0xFF)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        _serve(_requests)
