"""The options of ivshmem-server: those of QEMU's contrib/ivshmem-server, and ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.server import DEFAULT_MAX_PEERS, DEFAULT_MAX_QUEUED
from ivshmem_server.sizes import parse_size
from protocol import __version__
from protocol.ivshmem import MAX_ID, MAX_VECTORS
from protocol.program.access import access_from, add_access_options, given_options
from protocol.program.command_line import (
    TWO_SOCKETS,
    OneLineParser,
    add_log_options,
    group_id,
    parsed_by,
    user_id,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "ivshmem-server"

DEFAULT_SOCKET = "/tmp/ivshmem_socket"
DEFAULT_PID_FILE = "/var/run/ivshmem-server.pid"

_EPILOG = """\
'ivshmem-server status PATH' prints what the server does whose --status-socket is PATH.
Beside it: 'ivshmem-client' is a peer on the command line, 'ivshmem_server.connect' one in Python.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ivshmem-server's options."""
    parser = OneLineParser(
        prog=PROGRAM,
        description="Give QEMU guests and host processes a common memory and doorbells (ivshmem-doorbell).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} (qemu-companion) {__version__}")
    _add_process_options(parser)
    _add_socket_options(parser)
    _add_memory_options(parser)
    _add_peer_options(parser)
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exit 2 with one line where it is wrong."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.verbose and not options.foreground and not options.log_file:
        parser.error("argument -v: a daemon has no terminal to be verbose on; add -F or --log-file")
    if options.status_socket and Path(options.status_socket).resolve() == Path(options.socket_path).resolve():
        parser.error(f"argument --status-socket: {TWO_SOCKETS.format(options.status_socket)}")
    if options.fd is not None and (access := access_from(options)):
        parser.error(f"{given_options(access)}: for a socket that we make; leave out that, or --fd")
    if options.hugetlb and options.backing[0] != "memfd":
        parser.error(
            "argument --hugetlb: goes with --memfd; for a mounted hugetlbfs give its directory with -m"
        )
    return options


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("process")
    add_log_options(group, "log each join and leave (needs -F or --log-file)")
    group.add_argument(
        "-F", "--foreground", action="store_true", help="stay in the foreground (default: daemonize)"
    )
    group.add_argument(
        "-p",
        "--pid-file",
        metavar="FILE",
        default=DEFAULT_PID_FILE,
        help="PID file of the daemon (default: %(default)s)",
    )
    group.add_argument(
        "--status-socket", metavar="PATH", help="send the server's state as JSON to whoever connects to PATH"
    )
    group.add_argument(
        "--print-qemu-args",
        action="store_true",
        help="print the QEMU options for a guest of this server, and exit",
    )
    group.add_argument(
        "--print-libvirt-xml",
        action="store_true",
        help="print the libvirt element for such a guest, and exit",
    )


def _add_socket_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("socket")
    group.add_argument(
        "-S",
        "--socket-path",
        metavar="PATH",
        default=DEFAULT_SOCKET,
        help="where to listen (default: %(default)s)",
    )
    group.add_argument(
        "--fd",
        type=whole_number(0, 1 << 20),
        metavar="N",
        help="serve the listening socket that is descriptor N",
    )
    add_access_options(group)


def _add_memory_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shared memory", "The last of -M, -m and --memfd counts.")
    group.add_argument(
        "-M",
        "--shm-name",
        dest="backing",
        type=lambda name: ("shm", name),
        metavar="NAME",
        default=("shm", "ivshmem"),
        help="POSIX shared memory object (default: ivshmem)",
    )
    group.add_argument(
        "-m",
        "--shm-dir",
        dest="backing",
        type=lambda path: ("directory", path),
        metavar="DIR",
        help="a file without a name in DIR, such as a mounted hugetlbfs",
    )
    group.add_argument(
        "--memfd",
        dest="backing",
        action="store_const",
        const=("memfd", ""),
        help="anonymous memory, sealed so that no client can resize it",
    )
    group.add_argument(
        "--hugetlb", type=_huge_page, metavar="SIZE", help="with --memfd: huge pages of SIZE, as 2M"
    )
    group.add_argument(
        "--prealloc",
        action="store_true",
        help="take all of it from the system at the start, not as it is filled",
    )
    group.add_argument(
        "-l",
        "--size",
        type=parsed_by(parse_size),
        default=4 << 20,
        metavar="SIZE",
        help="bytes, with K, M, G or T; rounded up to a power of two (default: 4M)",
    )


def _add_peer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("peers")
    group.add_argument(
        "-n",
        "--vectors",
        type=whole_number(1, MAX_VECTORS),
        default=1,
        metavar="N",
        help=f"interrupt vectors of each peer, at most {MAX_VECTORS} (default: %(default)s)",
    )
    group.add_argument(
        "--max-peers",
        type=whole_number(1, MAX_ID + 1),
        default=DEFAULT_MAX_PEERS,
        metavar="N",
        help="refuse more peers at a time than N (default: %(default)s)",
    )
    group.add_argument(
        "--max-queued",
        type=whole_number(1, 1 << 32),
        default=DEFAULT_MAX_QUEUED,
        metavar="N",
        help="disconnect a peer that leaves more messages unread than N (default: %(default)s)",
    )
    group.add_argument(
        "--sticky",
        action="store_true",
        help="do not tell the others that a peer left; the next one takes over its id and doorbells "
        "(avoids crashes of QEMU after a leave)",
    )
    for name, kind, who in (
        ("uid", user_id, "of this user, a name or a number,"),
        ("gid", group_id, "in this group, be it a supplementary one,"),
    ):
        group.add_argument(
            f"--allow-{name}",
            type=kind,
            action="append",
            default=[],
            metavar=name.upper(),
            help=f"admit only peers {who} or another one allowed (may be repeated)",
        )


def _huge_page(text: str) -> int:
    size = parsed_by(parse_size)(text)
    if size & size - 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a power of two")
    return size
