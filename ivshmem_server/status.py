"""What a server is doing, as JSON over a socket and as a table for people."""

# How it works: each reader gets a task of its own and a document made at one moment, between two awaits of
# the server, so that its parts agree. The task closes the reader's stream, after SEND_SECONDS at the latest:
# a reader that does not read costs a descriptor for so long and delays no client. At the limit of open files
# readers wait in the queue of the listener, which is the caller's to close.

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio

from ivshmem_server.id_supply import IDS, describe_missing
from ivshmem_server.sizes import format_size
from protocol.ivshmem import PROTOCOL_VERSION, Refusal
from protocol.words import plural

if TYPE_CHECKING:
    from ivshmem_server.server import IvshmemServer
    from protocol.io import FdStream, Listener

SEND_SECONDS = 5.0
"""How long a reader of the status may take."""

READ_SECONDS = 10.0

_log = logging.getLogger("ivshmem_server")


class NoStatusError(Exception):
    """No server tells its status on a socket. The text says in a few words what is there instead."""


def status_document(server: IvshmemServer, socket_path: str = "") -> dict[str, Any]:
    """Return the state of `server` as a JSON object.

    "pid", "socket", "memory" {"kind", "path", "size" in bytes}, "vectors", "sticky", "vacant_slots",
    "ids_left", "ids_held", "ids_reserved", "max_peers", "max_queued", "counters" {name: count}, and
    "peers": a list, in the order they joined, of {"id", "pid", "uid", "gid", "vectors", "queued" messages,
    "since" in UTC}.
    """
    memory = server.memory
    return {
        "pid": os.getpid(),
        "socket": socket_path,
        "memory": {
            "kind": memory.kind,
            "path": str(memory.path) if memory.path else None,
            "size": memory.size,
        },
        "vectors": server.vectors,
        "sticky": server.sticky,
        "vacant_slots": server.vacant_slots,
        "ids_left": server.ids.left,
        "ids_held": server.ids.held,
        "ids_reserved": server.ids.reserved,
        "max_peers": server.max_peers,
        "max_queued": server.max_queued,
        "counters": dict(server.counters),
        "peers": [
            {
                "id": client.member.id,
                "pid": client.credentials.pid,
                "uid": client.credentials.uid,
                "gid": client.credentials.gid,
                "vectors": server.vectors,
                "queued": client.member.session.queued,
                "since": datetime.fromtimestamp(client.since, UTC).isoformat(timespec="milliseconds"),
            }
            for client in server.clients
        ],
    }


async def serve_status(server: IvshmemServer, listener: Listener, socket_path: str) -> None:
    """Send the state to whoever connects to `listener`, then close; until cancelled."""
    async with trio.open_nursery() as nursery:
        while True:
            stream = await listener.accept_patiently(_log_accept_failure)
            nursery.start_soon(_send_status, server, stream, socket_path)


def _log_accept_failure(reason: str) -> None:
    _log.warning("the status socket can take no client: %s; trying again", reason)


async def _send_status(server: IvshmemServer, stream: FdStream, socket_path: str) -> None:
    document = json.dumps(status_document(server, socket_path)).encode() + b"\n"
    with stream, trio.move_on_after(SEND_SECONDS), contextlib.suppress(OSError):  # a reader may go
        await stream.send(document)


def read_status(path: str) -> dict[str, Any]:
    """Return what the server says whose status socket is `path`.

    Raises OSError; NoStatusError where somebody else listens there, as soon as that shows.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READ_SECONDS)
        sock.connect(path)
        data = bytearray()
        try:
            while chunk := sock.recv(65536):
                data += chunk
                if not data.startswith(b"{"):
                    raise NoStatusError(_whose(data))
        except TimeoutError:
            raise NoStatusError(f"nothing came within {READ_SECONDS:g} s") from None
    return _document(data)


def _whose(data: bytearray) -> str:
    """Say what began with `data`: an ivshmem server takes us for a peer, and begins with its version."""
    if int.from_bytes(data[:8], "little", signed=True) in {PROTOCOL_VERSION, *Refusal}:
        return "it is the socket for guests and other peers (-S)"
    return "what came is not JSON"


def _document(data: bytearray) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict) or "peers" not in document:
        raise NoStatusError("what came is not a status of an ivshmem server")
    return document


def format_status(status: dict[str, Any]) -> str:
    """Return a status document as text: what is served, a table of the peers, the counters."""
    memory = status["memory"]
    where = f" {memory['path']}" if memory["path"] else ""
    lines = [
        f"server   pid {status['pid']}, {status['socket'] or 'inherited socket'}",
        f"memory   {memory['kind']}{where}, {format_size(memory['size'])}",
        f"peers    {len(status['peers'])} of at most {status['max_peers']}, "
        f"{plural(status['vectors'], 'vector')} each"
        + (f", {plural(status['vacant_slots'], 'vacant slot')}" if status["sticky"] else ""),
        f"ids      {status['ids_left']} of {IDS} left" + _missing_text(status),
        "counters " + (", ".join(f"{name} {count}" for name, count in status["counters"].items()) or "none"),
    ]
    columns = ("id", "pid", "uid", "gid", "vectors", "queued")
    rows = [[str(peer[name]) for name in columns] + [_age(peer["since"])] for peer in status["peers"]]
    if rows:
        lines += ["", *_table([*columns, "connected for"], rows)]
    return "\n".join(lines)


def _missing_text(status: dict[str, Any]) -> str:
    missing = describe_missing(status["ids_held"], status["ids_reserved"])
    return f": {missing}" if missing else ""


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [titles, *rows]
    ]


def _age(since: str) -> str:
    seconds = max(0, int(time.time() - datetime.fromisoformat(since).timestamp()))
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02}"
