"""serve(): a device for front-ends that come, one after the other."""

# How it works: the device lives as long as serve(), and each connection has its own state, which ends with
# it. There is one connection at a time. What has to outlive a connection is the device's (its run_host()
# task runs all the time), or the front-end's: guest memory, the in-flight buffer, the dirty log.
#
# As a server, the listening socket stays open while a front-end is served; the next one waits in its accept
# queue, unseen, and after CHANGE_SECONDS the log says so. As a client, we connect again whenever the
# connection ends, with a delay that grows. An exception of the device ends its connection only; the next
# front-end gets the same device, which is reset first.
#
# Descriptors: the listener, and its path, belong to serve(), which removes both in the end. A stream belongs
# to serve_connection(), which closes it. An inherited `fd` is ours once serve() has found it to be a
# socket that can be served. If the process dies, the path of the socket is left; listen() replaces it then.

from __future__ import annotations

import contextlib
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.io import FdStream, exhaustion, inherited_listener, listen
from protocol.io import connect as connect_socket
from protocol.io.stream import check_path
from protocol.program.access import SocketAccess
from vhost_user.backend.connection import serve_connection
from vhost_user.device import VirtioDevice

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from protocol.io import Listener

FIRST_RETRY_SECONDS = 0.05
LAST_RETRY_SECONDS = 2.0
"""How long a client waits before it connects again: the first time, and at most."""

CHANGE_SECONDS = 1.0
"""How long one front-end may take to leave while the next one, which may be the same, waits already."""

_log = logging.getLogger("vhost_user")


async def serve(
    device: VirtioDevice,
    *,
    socket_path: str | os.PathLike[str] | None = None,
    fd: int | None = None,
    connect: str | os.PathLike[str] | None = None,
    mode: int | None = None,
    owner: int = -1,
    group: int = -1,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `device` to one front-end after the other.

    One of these says where:

    `socket_path`: listen there, and remove the socket in the end; its permissions are `mode`, or those
    that the umask leaves, and `owner` and `group` are numbers, -1 for one's own;
    `fd`: an inherited UNIX stream socket, which serve() closes: one that listens, or one that is connected
    already, which is served until the front-end leaves;
    `connect`: a socket on which the front-end listens (QEMU's `server=on`): connect, and connect again
    whenever the connection ends.

    Started in a nursery, it is ready once the front-end can connect. It returns only for a connected
    `fd`. A device's exception ends its connection, with a traceback in the log; it is raised where no
    further front-end can come. Raises ValueError for other arguments, SocketInUseError, SocketAccessError,
    OSError.
    """
    if [socket_path, fd, connect].count(None) != 2:
        raise ValueError("give one of socket_path, fd and connect")
    with contextlib.ExitStack() as stack:
        if connect is not None:
            check_path(os.fspath(connect))
            serving = partial(_serve_as_client, device, os.fspath(connect))
        elif fd is not None and not _is_listening(fd):
            serving = partial(serve_connection, device, _connected(fd))
        else:
            access = SocketAccess(mode=mode, owner=owner, group=group)
            listener = stack.enter_context(_listener(socket_path, fd, access))
            serving = partial(_serve_listener, device, listener)
        task_status.started()
        await _serve_beside_host(device, serving)


async def _serve_beside_host(device: VirtioDevice, serving: Callable[[], Awaitable[None]]) -> None:
    if type(device).run_host is VirtioDevice.run_host:
        await serving()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run_host, name="host")
        await serving()
        nursery.cancel_scope.cancel()


def _listener(path: str | os.PathLike[str] | None, fd: int | None, access: SocketAccess) -> Listener:
    if path is not None:
        return listen(os.fspath(path), **access)
    assert fd is not None
    return inherited_listener(fd)


async def _serve_listener(device: VirtioDevice, listener: Listener) -> None:
    while True:
        stream = await listener.accept_patiently(_log_exhaustion)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_log_who_waits, listener)
            await _serve_safely(device, stream)
            nursery.cancel_scope.cancel()


def _log_exhaustion(reason: str) -> None:
    _log.error("no front-end can connect now: %s; trying again", reason)


async def _log_who_waits(listener: Listener) -> None:
    """Warn, once, when another front-end waits although this one had time to leave."""
    await listener.wait_readable()
    await trio.sleep(CHANGE_SECONDS)
    _log.warning("another front-end waits until this one has left: a device serves one at a time")


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
    log_reason = partial(_log.error, "cannot connect to %s: %s; trying again", path)
    try:
        return await exhaustion.retry_until_available(partial(connect_socket, path), log_reason)
    except OSError as error:
        level = logging.DEBUG if quietly else logging.INFO
        _log.log(level, "no front-end listens on %s yet: %s; trying again", path, error.strerror)
        return None


async def _serve_safely(device: VirtioDevice, stream: FdStream) -> None:
    """Serve a connection; log what the device raises."""
    _log.info("a front-end is connected")
    try:
        await serve_connection(device, stream)
    except* trio.Cancelled:
        raise  # the device may fail while it is told to end
    except* Exception:
        _log.exception("the device failed, which ends the connection")
    else:
        _log.info("the front-end has left")


def _is_listening(fd: int) -> bool:
    with _borrowed(fd) as sock:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _connected(fd: int) -> FdStream:
    with _borrowed(fd) as sock:
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise ValueError(f"descriptor {fd} is not a UNIX stream socket")
        if not _is_connected(sock):
            raise ValueError(f"descriptor {fd} neither listens nor is connected")
    os.set_inheritable(fd, False)
    return FdStream(socket.socket(fileno=fd))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """Look at the socket `fd`, which stays open. Raises ValueError if it is not a socket."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(f"descriptor {fd} is not a socket: {error.strerror}") from None
    try:
        yield sock
    finally:
        sock.detach()
