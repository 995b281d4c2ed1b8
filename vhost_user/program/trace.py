"""`vhost-user trace`: prints the messages between any front-end and any back-end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from protocol.io import listen
from protocol.io.hangup import fail_without_reader
from protocol.io.stream import check_path
from protocol.program import notify, signals
from protocol.program.access import access_from, add_access_options
from protocol.program.command_line import BROKEN_PIPE, UserError, fail, raise_open_files_limit
from protocol.program.socket_errors import cannot_connect, cannot_listen
from vhost_user.trace import DEVICE_TYPES, Json, Text, trace

if TYPE_CHECKING:
    from protocol.io import Listener
    from protocol.program.access import SocketAccess
    from vhost_user.trace import Event, Format

PROGRAM = "vhost-user trace"

_DESCRIPTION = """\
Sit between a front-end (QEMU) and a vhost-user back-end, pass everything on, and print each message.
Point the front-end at --listen; the back-end listens at --connect. A back-end that is a client connects
to --listen, and --connect is where the front-end listens.
"""

_EPILOG = """\
Each line: seconds since the start, the connection, > from the front-end or < from the back-end, the
message, the files that came with it, and for a reply the time since its request.
"""


def add_trace_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `trace`; its options hold `run_trace` as `run`."""
    parser = subparsers.add_parser(
        "trace",
        help="print the messages between a front-end and a back-end",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--listen", metavar="PATH", required=True, help="socket to create, for the front-end")
    add_access_options(parser, "socket of --listen")
    parser.add_argument("--connect", metavar="PATH", required=True, help="socket of the back-end")
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="what to print (default: %(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=sorted(DEVICE_TYPES),
        default="",
        help="name the feature bits of this device type",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="overwrite FILE (default: standard output)",
    )
    parser.set_defaults(run=run_trace)


def run_trace(options: argparse.Namespace) -> int:
    """Run `vhost-user trace` until a signal ends it; return its exit code."""
    raise_open_files_limit()
    try:
        _check_target(options)
        with _listener(options.listen, access_from(options)) as listener, _output(options.output) as output:
            show = Json(options.device) if options.format == "json" else Text(time.time(), options.device)
            printer = _Printer(show, output)
            trio.run(_trace_until_signal, listener, options.connect, printer)
    except UserError as error:
        return fail(PROGRAM, error)
    except KeyboardInterrupt:
        return 0  # before the loop could take the signal
    if isinstance(printer.error, BrokenPipeError):
        return BROKEN_PIPE
    return fail(PROGRAM, f"cannot print: {printer.error.strerror}") if printer.error else 0


class _Printer:
    """Prints a line for each event, until that fails: then `error` says why, and `scope` is cancelled."""

    def __init__(self, show: Format, output: FileIO) -> None:
        self.error: OSError | None = None
        self.scope = trio.CancelScope()
        self._show = show
        self._output = output

    def __call__(self, event: Event) -> None:
        """Print one line."""
        try:
            self._output.write(f"{self._show(event)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            self._fail(error)

    async def watch_reader(self) -> None:
        """Fail as soon as the output has no reader: without a message the printer would not see that."""
        try:
            await fail_without_reader(self._output.fileno())
        except BrokenPipeError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.error = error
        self.scope.cancel()


async def _trace_until_signal(listener: Listener, path: str, printer: _Printer) -> None:
    stop = [signal.SIGTERM, signal.SIGINT]
    if signals.heeds_hangup():
        stop.append(signal.SIGHUP)
    with printer.scope, trio.open_signal_receiver(*stop) as received:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trace, listener, path, printer)
            nursery.start_soon(printer.watch_reader)
            notify(f"READY=1\nMAINPID={os.getpid()}")
            async for _ in received:
                break
            nursery.cancel_scope.cancel()


def _check_target(options: argparse.Namespace) -> None:
    """Raise UserError for a --connect that can never work."""
    try:
        check_path(options.connect)
    except OSError as error:
        raise cannot_connect(options.connect, error) from None
    if Path(options.connect).resolve() == Path(options.listen).resolve():
        raise UserError(
            f"--listen and --connect are both {options.listen}; give the trace a socket of its own"
        )


def _listener(path: str, access: SocketAccess) -> Listener:
    try:
        return listen(path, **access)
    except OSError as error:
        raise cannot_listen(path, error) from None


def _output(path: str | None) -> FileIO:
    """Open the output without a buffer: each line is written at once, and no write is left to fail later."""
    if path is None:
        return FileIO(sys.stdout.fileno(), "w", closefd=False)
    try:
        return FileIO(path, "w")
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; give another --output") from None
