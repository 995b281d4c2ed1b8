"""What went wrong, in one line for the user of ivshmem-client: the cause and the remedy."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.peer import NoSuchPeerError
from protocol.errors import RemoteProtocolError
from protocol.io.exhaustion import cause_and_remedy
from protocol.program.command_line import UserError
from protocol.program.socket_errors import cannot_connect

if TYPE_CHECKING:
    import argparse


def explain(error: BaseException, options: argparse.Namespace) -> str | None:
    """Return the line for `error`; None where it is not a mistake of a user or a server, but a bug."""
    match error:
        case RemoteProtocolError():
            return f"{error} (server at {options.socket_path})"
        case UserError() | NoSuchPeerError():
            return str(error)
        case OSError(filename=options.socket_path):
            return _no_connection(error, options.socket_path)
        case OSError(filename=None):
            full = error.errno == errno.ENOSPC
            return f"cannot write to standard output: {error.strerror}" if full else cause_and_remedy(error)
        case OSError():
            return f"cannot open {error.filename}: {cause_and_remedy(error)}"
    return None


def _no_connection(error: OSError, path: str) -> str:
    if error.errno == errno.ECONNREFUSED and not Path(path).is_socket():
        return f"{path} is not a socket; give the server's -S"
    if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
        return f"no server listens on {path}; start one with 'ivshmem-server -S {path}', or give another -S"
    if error.errno == errno.EACCES:
        return f"no permission to connect to {path}; start the server with --mode or --group, or be its user"
    if error.errno in {errno.ENOTSOCK, errno.EPROTOTYPE}:
        return f"{path} is not a stream socket; give the server's -S"
    return str(cannot_connect(path, error, "-S"))
