"""ivshmem-server, a drop-in replacement for QEMU's example server."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ivshmem_server.memory import MemoryUnavailableError, SharedMemory
from ivshmem_server.program.daemon import Daemon, daemonize, pid_file
from ivshmem_server.program.qemu_args import libvirt_xml, qemu_args
from ivshmem_server.program.server_options import PROGRAM, parse_options
from ivshmem_server.server import DEFAULT_MAX_PEERS, IvshmemServer
from ivshmem_server.status import NoStatusError, format_status, read_status, serve_status, status_document
from protocol.io import Listener, exhaustion, inherited_listener, listen, systemd_listener
from protocol.program import notify, signals, watchdog
from protocol.program.access import access_from, given_options
from protocol.program.command_line import (
    INTERRUPTED,
    OneLineParser,
    UserError,
    check_descriptors,
    configure_log,
    fail,
    fail_to_start,
    log_failed_start,
    prepare_standard_streams,
    print_result,
    raise_open_files_limit,
    room_for_descriptors,
)
from protocol.program.socket_errors import cannot_listen
from protocol.words import plural

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Sequence

LOOP_DESCRIPTORS = 16
"""How many are left to the loop, to those who ask for the status, and to a client that is refused."""

_log = logging.getLogger("ivshmem_server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ivshmem-server with the command line `argv`; return its exit code."""
    prepare_standard_streams()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["status"]:
        return _print_status(argv[1:])
    options = parse_options(argv)
    if options.print_qemu_args or options.print_libvirt_xml:
        return _print_what_to_paste(options)
    try:
        return _run(options)
    except (UserError, MemoryUnavailableError) as error:
        return fail_to_start(PROGRAM, error)
    except KeyboardInterrupt:
        # Outside of the loop. A parent does not know what becomes of its daemon.
        return 0 if options.foreground else INTERRUPTED


def _print_what_to_paste(options: argparse.Namespace) -> int:
    texts = []
    if options.print_qemu_args:
        texts.append(qemu_args(options.socket_path, options.vectors))
    if options.print_libvirt_xml:
        texts.append(libvirt_xml(options.socket_path, options.vectors))
    return print_result(PROGRAM, "\n".join(texts))


def _run(options: argparse.Namespace) -> int:
    raise_open_files_limit()
    check_descriptors("a server", LOOP_DESCRIPTORS)
    listener = _inherited(options)  # before a fork: systemd means the process that it started
    if options.foreground:
        return _serve(options, listener, None)
    daemon = daemonize(PROGRAM)
    try:
        return _serve(options, listener, daemon)
    except (UserError, MemoryUnavailableError) as error:
        log_failed_start(error)
        daemon.failed(f"{PROGRAM}: {error}")
        return 1


def _serve(options: argparse.Namespace, listener: Listener | None, daemon: Daemon | None) -> int:
    with contextlib.ExitStack() as stack:
        configure_log(PROGRAM, options)
        received = stack.enter_context(signals.ServiceSignals([signal.SIGUSR1], has_children=False))
        # From here on there is something to clean up.
        memory = stack.enter_context(_open_memory(options))
        if options.prealloc:
            with signals.interruptible():  # much memory takes long
                memory.preallocate()
        server = IvshmemServer(
            memory,
            vectors=options.vectors,
            sticky=options.sticky,
            max_peers=options.max_peers,
            max_queued=options.max_queued,
            allow_uids=options.allow_uid,
            allow_gids=options.allow_gid,
        )
        if not server.ids.left:
            raise UserError(
                f"peers of an earlier server have {memory.path}, and may have any id: restart them, or choose"
                " another name with -M"
            )
        listener = stack.enter_context(listener or _listen(options))
        status = (
            stack.enter_context(_listen_for_status(options.status_socket)) if options.status_socket else None
        )
        _check_descriptors(options)
        if daemon:
            _write_pid_file(stack, options.pid_file)
        return _run_loop(partial(_main, server, listener, status, daemon, received))


def _run_loop(main: Callable[[], Awaitable[None]]) -> int:
    """Run the loop; return the exit code. What must not happen is in the log: a daemon has nothing else."""
    try:
        trio.run(main)
    except Exception:
        _log.critical("the server failed", exc_info=True)
        return 1
    return 0


async def _main(
    server: IvshmemServer,
    listener: Listener,
    status: Listener | None,
    daemon: Daemon | None,
    received: signals.ServiceSignals,
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listener)
        if status:
            nursery.start_soon(serve_status, server, status, listener.path)
        nursery.start_soon(watchdog)
        _announce(server, listener, daemon)
        while (number := await received.wait()) == signal.SIGUSR1:
            _log_status(server, listener)
        left = sum(1 for _ in server.clients)
        notify("STOPPING=1")
        nursery.cancel_scope.cancel()
    _log.info("ended by %s; %d connected", signal.Signals(number).name, left)


def _check_descriptors(options: argparse.Namespace) -> None:
    """Raise UserError where the limit of open files has no room for a peer; warn of too little."""
    limit, room = room_for_descriptors()
    each = options.vectors + 1
    peers = max(0, room - LOOP_DESCRIPTORS) // each
    needs = f"a peer with {plural(options.vectors, 'vector')} takes {each} open files of the server's"
    if not peers:
        less = ", or give less with -n" if room > LOOP_DESCRIPTORS + 1 else ""
        raise UserError(f"{needs}, of at most {limit}: raise the limit of open files (ulimit -n){less}")
    wanted = 2 if options.max_peers == DEFAULT_MAX_PEERS else options.max_peers
    if peers < wanted:
        _log.warning(
            "%s, of at most %d: there is room for %s; raise the limit (ulimit -n)",
            *(needs, limit, plural(peers, "peer")),
        )


def _announce(server: IvshmemServer, listener: Listener, daemon: Daemon | None) -> None:
    """Tell whoever waits for it that clients can connect now."""
    _log.info(
        "listening on %s; %s; %s",
        *(listener.path, server.memory, plural(server.vectors, "vector")),
    )
    notify(f"READY=1\nMAINPID={os.getpid()}")
    if daemon:
        daemon.ready()


def _log_status(server: IvshmemServer, listener: Listener) -> None:
    status = status_document(server, listener.path)
    _log.info("status\n%s", format_status(status), extra={"status": status})


def _inherited(options: argparse.Namespace) -> Listener | None:
    try:
        listener = inherited_listener(options.fd) if options.fd is not None else systemd_listener()
    except ValueError as error:
        raise UserError(f"{error}; pass one that listens, or leave out --fd") from None
    if listener is not None and (access := access_from(options)):
        raise UserError(
            f"{given_options(access)}: for a socket that we make, and systemd has handed one over; say in the"
            " .socket unit SocketMode=, SocketUser= and SocketGroup="
        )
    return listener


def _listen(options: argparse.Namespace) -> Listener:
    path = options.socket_path
    try:
        return listen(path, **access_from(options))
    except OSError as error:
        raise cannot_listen(path, error, "-S") from None


def _listen_for_status(path: str) -> Listener:
    try:
        return listen(path)
    except OSError as error:
        raise cannot_listen(path, error, "--status-socket") from None


def _open_memory(options: argparse.Namespace) -> SharedMemory:
    kind, where = options.backing
    if kind == "memfd":
        return SharedMemory.memfd(options.size, hugetlb=options.hugetlb)
    if kind == "directory":
        return SharedMemory.directory(where, options.size)
    return SharedMemory.posix(where, options.size)


def _write_pid_file(stack: contextlib.ExitStack, path: str) -> None:
    try:
        with signals.interruptible():  # somebody has to read a FIFO first
            stack.enter_context(pid_file(path))
    except OSError as error:
        reason = exhaustion.cause_and(error, "give another with -p, or -F")
        raise UserError(f"cannot write PID file {path}: {reason}") from None


def _print_status(argv: Sequence[str]) -> int:
    parser = OneLineParser(prog=f"{PROGRAM} status", description="Print what a server does.")
    parser.add_argument("path", metavar="PATH", help="the server's --status-socket")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(argv)
    try:
        status = read_status(options.path)
    except (OSError, NoStatusError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        remedy = "is a server running with --status-socket there?"
        if isinstance(error, PermissionError):
            remedy = "be its user, or root"
        elif isinstance(error, OSError) and exhaustion.is_exhausted(error):
            return fail(PROGRAM, f"no status from {options.path}: {exhaustion.cause_and_remedy(error)}")
        elif isinstance(error, NoStatusError):
            remedy = "give a server's --status-socket"
        elif Path(options.path).exists() and not Path(options.path).is_socket():
            reason, remedy = "it is not a socket", "give a server's --status-socket"
        return fail(PROGRAM, f"no status from {options.path}: {reason}; {remedy}")
    return print_result(PROGRAM, json.dumps(status, indent=2) if options.json else format_status(status))


if __name__ == "__main__":
    sys.exit(main())
