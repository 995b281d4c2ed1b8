"""serve(): a device for front-ends that come, one after the other."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

import trio

from protocol.io import FdStream, inherited_listener, listen
from protocol.io import connect as connect_socket
from vhost_user.connection import serve_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protocol.io import Listener
    from vhost_user.device import VirtioDevice

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
"""How long a client waits before it connects again: the first time, and at most."""

_log = logging.getLogger("vhost_user")


async def serve(
    device: VirtioDevice,
    *,
    socket_path: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    connect: str | os.PathLike[str] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `device` to one front-end after the other.

    One of these says where:

    `socket_path`: listen there, and remove the socket in the end;
    `fd`: a UNIX stream socket that was inherited and is ours now: one that listens, or is connected
    already, which is served until the front-end leaves;
    `connect`: a socket on which the front-end listens (QEMU's `server=on`): connect, and whenever
    the connection ends connect again.

    Started in a nursery, it is ready once the front-end can connect. It returns only for a connected
    `fd`. A device's exception ends its connection, with a traceback in the log; it is raised where no
    further front-end can come. Raises ValueError for other arguments, SocketInUseError, OSError.
    """
    if [socket_path, fd, connect].count(None) != 2:
        raise ValueError("give one of socket_path, fd and connect")
    if connect is not None:
        task_status.started()
        await _serve_as_client(device, os.fspath(connect))
    elif fd is not None and not _is_listening(fd):
        task_status.started()
        await serve_connection(device, _connected(fd))
    else:
        with _listener(socket_path, fd) as listener:
            task_status.started()
            await _serve_listener(device, listener)


def _listener(path: str | os.PathLike[str] | None, fd: int | None) -> Listener:
    if path is not None:
        return listen(os.fspath(path))
    assert fd is not None
    return inherited_listener(fd)


async def _serve_listener(device: VirtioDevice, listener: Listener) -> None:
    while True:
        stream = await listener.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_who_waits, listener)
            await _serve_safely(device, stream)
            nursery.cancel_scope.cancel()


async def _tell_who_waits(listener: Listener) -> None:
    """Say so, once, when another front-end has connected, which nothing else tells of."""
    await listener.wait_readable()
    _log.warning("another front-end waits until this one has left: one at a time is served")


async def _serve_as_client(device: VirtioDevice, path: str) -> None:
    delay = FIRST_RETRY_SECONDS
    while True:
        stream = await _try_to_connect(path, quietly=delay > FIRST_RETRY_SECONDS)
        if stream is not None:
            delay = FIRST_RETRY_SECONDS
            await _serve_safely(device, stream)
        await trio.sleep(delay)
        delay = min(2 * delay, LAST_RETRY_SECONDS)


async def _try_to_connect(path: str, *, quietly: bool) -> FdStream | None:
    try:
        return await connect_socket(path)
    except OSError as error:
        level = logging.DEBUG if quietly else logging.INFO
        _log.log(level, "no front-end listens on %s yet: %s; trying again", path, error.strerror)
        return None


async def _serve_safely(device: VirtioDevice, stream: FdStream) -> None:
    """Serve a connection; log what the device raises."""
    _log.info("a front-end is connected")
    try:
        await serve_connection(device, stream)
    except Exception:
        _log.exception("the device failed, which ends the connection")
    else:
        _log.info("the front-end has left")


def _is_listening(fd: int) -> bool:
    with _borrowed(fd) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _connected(fd: int) -> FdStream:
    with _borrowed(fd) as sock:
        kind = sock.family, sock.type
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise ValueError(f"descriptor {fd} is no UNIX stream socket")
    os.set_inheritable(fd, False)
    return FdStream(socket.socket(fileno=fd))


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Look at the socket `fd`, which stays open. Raises ValueError where it is none."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"descriptor {fd} is no socket: {error.strerror}") from None
    try:
        yield sock
    finally:
        sock.detach()
