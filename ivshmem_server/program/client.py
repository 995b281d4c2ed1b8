"""ivshmem-client: a peer as a program, for people at a prompt and for scripts."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from ivshmem_server.peer import UnusableMemoryError, connect, memory_path, open_memory
from ivshmem_server.program.client_errors import explain
from ivshmem_server.program.commands import PEER_COMMANDS, PeerCommand, describe
from ivshmem_server.program.memory_commands import MEMORY_COMMANDS, MemoryCommand
from ivshmem_server.program.server_options import DEFAULT_SOCKET
from ivshmem_server.program.shell import run_shell
from protocol import __version__
from protocol.io.background import beside, unwrap_group
from protocol.io.hangup import fail_without_reader
from protocol.ivshmem import MAX_VECTORS
from protocol.program.command_line import (
    BROKEN_PIPE,
    INTERRUPTED,
    OneLineParser,
    UserError,
    fail,
    prepare_standard_streams,
    raise_open_files_limit,
    seconds,
    settle_output,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ivshmem_server.peer import Peer

PROGRAM = "ivshmem-client"

_EPILOG = """\
Without a command: a prompt with help, dump and int, as the client of QEMU has.
'ivshmem-client COMMAND -h' tells a command's arguments. Numbers may be 0x.
Each command joins the server and leaves it, and every other peer is told (see ivshmem-server --sticky).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ivshmem-client with the command line `argv`; return its exit code."""
    prepare_standard_streams()
    options = _parse(argv)
    raise_open_files_limit()
    try:
        if isinstance(options.command, MemoryCommand):
            options.command.prepare(options)
        trio.run(_run, options)
        sys.stdout.flush()
    except BaseException as error:
        settle_output()
        return _exit_code(unwrap_group(error), options)
    return 0


def _exit_code(error: BaseException, options: argparse.Namespace) -> int:
    if _is_interrupt(error):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if (text := explain(error, options)) is None:
        raise error
    return fail(PROGRAM, text)


def _is_interrupt(error: BaseException) -> bool:
    """Tell whether somebody pressed Ctrl-C, whatever else went wrong at that."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


async def _run(options: argparse.Namespace) -> None:
    """Run the command until it ends, its output has no reader any more, or Ctrl-C is pressed."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        await _run_while_read(options)  # in the background of a script: Ctrl-C is meant for others
        return
    # A KeyboardInterrupt may come up between any two instructions, trio's own too; this one does not.
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupt, signals)
            await _run_while_read(options)
            nursery.cancel_scope.cancel()


async def _interrupt(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        raise KeyboardInterrupt


async def _run_while_read(options: argparse.Namespace) -> None:
    if not _lasts(options):
        await _run_command(options)
        return
    async with beside(partial(fail_without_reader, sys.stdout.fileno())):
        await _run_command(options)


def _lasts(options: argparse.Namespace) -> bool:
    """Tell whether the command waits for what it is to print, so that no attempt to print tells it to end."""
    match options.command:
        case PeerCommand(lasts=lasts):
            return lasts
        case MemoryCommand():
            return getattr(options, "watch", False)
    return True  # the prompt


async def _run_command(options: argparse.Namespace) -> None:
    command: PeerCommand | MemoryCommand | None = options.command
    if command is None:
        await run_shell(options)
    elif isinstance(command, PeerCommand):
        async with _joined(options) as peer:
            await command.run(peer, options)
    elif options.memory is None:
        async with _joined(options) as peer:
            await command.run(peer.memory, options)
    else:
        await _run_without_server(command, options)


@contextlib.asynccontextmanager
async def _joined(options: argparse.Namespace) -> AsyncIterator[Peer]:
    async with connect(
        options.socket_path, vectors=options.vectors, wait_for_server=options.wait_for_server
    ) as peer:
        if options.verbose:
            print(f"connected to {options.socket_path}", *describe(peer), sep="\n", file=sys.stderr)
        yield peer


async def _run_without_server(command: MemoryCommand, options: argparse.Namespace) -> None:
    path = memory_path(options.memory)
    try:
        plain = open_memory(options.memory, readonly=not command.writes)
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}; give a path with '/', or the name of a POSIX shared memory object"
        ) from None
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}; give another --memory") from None
    except UnusableMemoryError as error:
        raise UserError(f"{path} is unusable: {error}; give the memory that the guests use") from None
    with plain:
        await command.run(plain.memory, options)


# The command line


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _build_parser()
    options = parser.parse_args(argv)
    if options.memory is not None and not isinstance(options.command, MemoryCommand):
        possible = ", ".join(command.name for command in MEMORY_COMMANDS)
        parser.error(f"argument --memory: there is no peer to ring; use it with {possible}")
    return options


def _build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROGRAM,
        description="Be a peer of QEMU guests that share memory and doorbells (ivshmem).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} (qemu-companion) {__version__}")
    _add_common(parser)
    parser.set_defaults(
        command=None,
        socket_path=DEFAULT_SOCKET,
        memory=None,
        vectors=None,
        wait_for_server=None,
        verbose=False,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (*PEER_COMMANDS, *MEMORY_COMMANDS):
        subparser = subparsers.add_parser(
            command.name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}."
        )
        command.add_arguments(subparser)
        _add_common(subparser)
        subparser.set_defaults(command=command)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add what may stand before and after the command; the defaults are set for both in one place."""
    add = partial(parser.add_argument_group("peer").add_argument, default=argparse.SUPPRESS)
    add("-v", "--verbose", action="store_true", help="say on standard error what we connected to")
    add("-S", "--socket-path", metavar="PATH", help=f"the server's socket (default: {DEFAULT_SOCKET})")
    add("--memory", metavar="FILE|NAME", help="no server: a file ('/' in it) or POSIX shared memory object")
    add(
        "--vectors",
        type=whole_number(1, MAX_VECTORS),
        metavar="N",
        help="expect N vectors (default: as many as the server gives)",
    )
    add("--wait-for-server", type=seconds, metavar="S", help="wait up to S seconds for a server to come up")


if __name__ == "__main__":
    sys.exit(main())
