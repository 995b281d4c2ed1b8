r"""The host's side at UNIX sockets: programs that connect to the guest or listen for it.

At PATH, a program connects and sends "CONNECT PORT\n"; once the guest has accepted, it gets "OK PORT\n"
with a port of ours, and then what the guest sends. What the guest connects to at the host's port P is
the program that listens at PATH_P.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.io import listen
from protocol.io.stream import MAX_PATH
from vhost_user.devices.vsock.connection import State
from vhost_user.devices.vsock.ports import LAST_PORT

if TYPE_CHECKING:
    from vhost_user.devices.vsock.stream import Stream

GREETING_SECONDS = 60.0
"""How long a program may take to say what it wants; a person may type it."""
MAX_GREETING = 32
"""Most bytes of that."""

_CONNECT_RETRY_SECONDS = 0.005
"""How often to try to connect to a program that is slow to accept others: nothing tells when it has."""

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

_log = logging.getLogger("vhost_user.vsock")


class VsockConnector(Protocol):
    """Whoever asks the guest for connections, and is asked by it: the device."""

    def ask(self, sock: socket.socket, port: int) -> Stream | None:
        """Ask for one to `port`, joined to `sock`, which it greets with a line. None: `sock` was closed."""

    def refuse(self, stream: Stream, error: OSError) -> None:
        """Refuse the guest what it asked for."""


class UnixSockets:
    """The sockets at PATH and PATH_PORT."""

    def __init__(self, path: str, most: int) -> None:
        """Listen at `path`, for at most `most` programs that have said nothing yet.

        Raises SocketInUseError, OSError.
        """
        if len(os.fsencode(f"{path}_{LAST_PORT}")) > MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, f"{path}_PORT would have more than {MAX_PATH} bytes", path)
        self._path = path
        self._listener = listen(path)
        self._most = trio.Semaphore(most)
        self._waiting: dict[int, deque[Stream]] = {}
        """What the guest asks for at ports whose programs have others to accept first."""
        self._are_waiting = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        """Remove the socket at PATH."""
        self._listener.close()

    async def serve(self, device: VsockConnector) -> None:
        """Ask `device` for what programs want, and programs for what the guest wants; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._join_waiting, device)
            while True:
                await self._most.acquire()
                nursery.start_soon(self._serve, await self._accept(), device)

    def join(self, stream: Stream, port: int) -> None:
        """Join what the guest asks for to the program that listens at `port`, once that has room for it.

        A program with many connections to accept is tried again until `stream` has waited enough.
        Raises OSError where none listens.
        """
        if port in self._waiting or not self._has_joined(stream, port):
            self._waiting.setdefault(port, deque()).append(stream)
            self._are_waiting.unpark()

    async def _join_waiting(self, device: VsockConnector) -> None:
        """Join those that wait as soon as they can be; runs until cancelled."""
        while True:
            while not self._waiting:
                await self._are_waiting.park()
            await trio.sleep(_CONNECT_RETRY_SECONDS)
            for port in list(self._waiting):
                self._try_again(port, device)

    def _try_again(self, port: int, device: VsockConnector) -> None:
        """Join those that wait for one program in their order, without those that wait no longer."""
        streams = deque(one for one in self._waiting[port] if one.connection.state is State.ASKED)
        while streams:
            try:
                if not self._has_joined(streams[0], port):
                    break
            except OSError as error:
                device.refuse(streams[0], error)
            streams.popleft()
        if streams:
            self._waiting[port] = streams
        else:
            del self._waiting[port]

    def _has_joined(self, stream: Stream, port: int) -> bool:
        """Join a connection if that can be; False: the program has to accept others first. Raises OSError."""
        try:
            stream.accept(self._connect(port))
        except BlockingIOError:
            return False
        return True

    def _connect(self, port: int) -> socket.socket:
        """Connect to a program. Raises BlockingIOError where it has to accept others first, OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(f"{self._path}_{port}")
        except BaseException:
            sock.close()
            raise
        return sock

    async def _accept(self) -> socket.socket:
        return (await self._listener.accept_patiently(self._log_accept_failure)).detach()

    def _log_accept_failure(self, reason: str) -> None:
        _log.error("cannot accept a connection at %s: %s; trying again", self._path, reason)

    async def _serve(self, sock: socket.socket, device: VsockConnector) -> None:
        port = None
        try:
            with trio.move_on_after(GREETING_SECONDS):
                port = await _read_port(sock)
        finally:
            self._most.release()
            if port is None:
                sock.close()
        if port is not None:
            device.ask(sock, port)


async def _read_port(sock: socket.socket) -> int | None:
    """Read one line, and not a byte more; return the port that it says, None for any other."""
    line = b""
    while len(line) < MAX_GREETING and not line.endswith(b"\n"):
        await trio.lowlevel.wait_readable(sock)
        try:
            seen = sock.recv(MAX_GREETING - len(line), _PEEK)
            # What comes behind the line is for the guest.
            line += sock.recv(seen.find(b"\n") + 1 or len(seen)) if seen else b"\n"
        except BlockingIOError:
            continue
        except OSError:
            return None
    return parse_greeting(line)


def parse_greeting(line: bytes) -> int | None:
    r"""Return the port in "CONNECT PORT\n", None for anything else."""
    word, _, port = line.partition(b" ")
    port = port.strip()
    if word.upper() != b"CONNECT" or not port.isdigit() or not line.endswith(b"\n"):
        return None
    return int(port) if int(port) <= LAST_PORT else None
