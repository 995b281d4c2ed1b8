"""All connections of one guest: packets find theirs, senders take turns, time limits.

How it works: all is in one thread. The task of the transmit queue calls `take()`, that of the receive queue
`fill()`, and three tasks of the device watch the sockets (one epoll for all), ask for credit and look for
deadlines. A connection is found by our address and the guest's port as long as the guest knows it; by its
socket (`_by_fd`) until all that the guest sent is passed on, which may be later. Streams that may have
something to send stand in `_ready`, once each, and take turns, a packet a turn; RSTs come first. The table
owns the streams, and a stream its socket.

All connections end with that of the front-end, when the driver resets the device, or begins again without
saying so. A driver that goes on with connections that this process never knew, after a crash, a restart or
a migration, is told by the event TRANSPORT_RESET.
"""

from __future__ import annotations

import logging
import select
from collections import deque
from typing import TYPE_CHECKING

import trio

from protocol.program.warnings import OnceLogger
from protocol.virtio.vsock import HEADER_SIZE, Header, Operation, SocketType
from protocol.words import plural
from vhost_user.buffers import copy, skip
from vhost_user.devices.vsock.connection import Address, Connection, State
from vhost_user.devices.vsock.stream import INTEREST, Stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from vhost_user.ring.chain import Chain

MAX_REPLIES = 1024
"""How many RSTs are kept while the guest gives no room for them, before no more packets are taken from it."""

FIRST_PORT, LAST_PORT = 1 << 30, (1 << 31) - 1
"""Our own ports for connections that the host asks for: beyond those that anybody chooses by hand."""

_EVENTS = 256
_EXPIRY_POLL_SECONDS = 1.0
"""How often to look whose time is up."""
_CREDIT_RETRY_SECONDS, _LONGEST_CREDIT_RETRY_SECONDS = 0.01, 1.0
"""How soon to ask a guest again whether it has read some packets; twice as long each time that it has not."""

_log = logging.getLogger("vhost_user.vsock")


class TooManyConnectionsError(Exception):
    """The guest has as many connections as it may have."""


class ConnectionTable:
    """The connections of the guest `cid`. Needs no trio but for `watch()` and `expire()`."""

    def __init__(
        self,
        cid: int,
        *,
        buf_alloc: int,
        most: int,
        asked: Callable[[Stream], None],
        changed: Callable[[str, Stream], None] = lambda *_: None,
    ) -> None:
        """Let each connection hold `buf_alloc` bytes, and have at most `most` of them.

        `asked()` gets each one that the guest asks for, and has to accept or reset it. `changed()` is
        told of each that is "opened" and "closed", or "refused".
        """
        self.cid = cid
        self.work = trio.lowlevel.ParkingLot()
        """Unparked when there may be something to send."""
        self.room = trio.lowlevel.ParkingLot()
        """Unparked when `is_full` may have changed."""
        self._buf_alloc = buf_alloc
        self._most = most
        self._asked = asked
        self._changed = changed
        self._streams: dict[tuple[Address, int], Stream] = {}
        self._ready: deque[Stream] = deque()
        self._replies: deque[Header] = deque()
        self._starved: set[Stream] = set()
        self._starving = trio.lowlevel.ParkingLot()
        self._credit_retry_seconds = _CREDIT_RETRY_SECONDS
        self._epoll = select.epoll()
        self._by_fd: dict[int, Stream] = {}
        self._last_port = FIRST_PORT - 1
        self._once = OnceLogger(_log)

    @property
    def streams(self) -> list[Stream]:
        """All connections that the guest knows of, in the order in which they began."""
        return list(self._streams.values())

    @property
    def is_full(self) -> bool:
        """True while no more packets are to be taken from the guest, until it takes what is for it."""
        return len(self._replies) >= MAX_REPLIES

    def ask(
        self,
        sock: socket.socket,
        port: int,
        *,
        own: Address,
        answered: Callable[[bool], None],
    ) -> Stream:
        """Ask the guest for a connection from `own` to its `port`, and join it to `sock`, which is ours now.

        Raises TooManyConnectionsError, having closed `sock`; so does an address that is in use.
        """
        if self._count() >= self._most or (own, port) in self._streams:
            sock.close()
            raise TooManyConnectionsError(f"guest {self.cid} has {plural(self._count(), 'connection')}")
        connection = Connection(own, Address(self.cid, port), self._buf_alloc, State.ASKING)
        stream = Stream(connection, self, answered)
        try:
            stream.attach(sock)
        except OSError as error:
            raise TooManyConnectionsError(f"guest {self.cid}: {error.strerror}") from None
        self._streams[own, port] = stream
        self.has_work(stream)
        return stream

    def free_port(self) -> int:
        """Return a port of ours that no connection has."""
        used = {own.port for own, _ in self._streams}
        while True:
            self._last_port = self._last_port + 1 if self._last_port < LAST_PORT else FIRST_PORT
            if self._last_port not in used:
                return self._last_port

    def reset_all(self) -> None:
        """End all connections; the guest is told by an RST for each."""
        for stream in self.streams:
            stream.reset()

    def drop_all(self) -> None:
        """End all connections of a guest that is gone, or has forgotten them: nothing is sent to it."""
        self.reset_all()
        self._replies.clear()
        self._ready.clear()
        self._starved.clear()
        self.room.unpark_all()

    def close(self) -> None:
        """Close everything, also what is still to be passed on."""
        self.drop_all()
        for stream in list(self._by_fd.values()):
            stream.close()
        self._epoll.close()

    # The queues

    def fill(self, chain: Chain) -> int | None:
        """Put the next packet for the guest into `chain`; return how many bytes that was.

        None: there is nothing to send now.
        """
        if chain.writable_length <= HEADER_SIZE:
            self.complain("gives room for a packet that has none for a header and a byte")
            return 0
        header = self._next_reply() or self._next_packet(skip(chain.writable_buffers, HEADER_SIZE))
        if header is None:
            return None
        copy([memoryview(header.encode())], chain.writable_buffers, HEADER_SIZE)
        return HEADER_SIZE + header.length

    def take(self, chain: Chain) -> None:
        """Take a packet from the guest; whatever it is, the chain can be given back then."""
        readable = chain.readable
        if readable.remaining < HEADER_SIZE:
            self.complain("sends packets shorter than their header")
            return
        header = Header.decode(readable.read(HEADER_SIZE))
        own = Address(header.dst_cid, header.dst_port)
        if header.src_cid != self.cid or header.type != SocketType.STREAM:
            self.complain("sends packets from another CID, or of sockets that are not streams")
            self._refuse(header)
        elif (stream := self._streams.get((own, header.src_port))) is not None:
            if header.length > readable.remaining:
                self.complain("sends packets that are shorter than they say")
                stream.reset()
            else:
                stream.receive(header, readable.first(header.length))
        elif header.op == Operation.REQUEST and self._count() < self._most:
            self._begin(own, header)
        else:
            self._refuse(header)

    def complain(self, what: str) -> None:
        """Log what the guest does wrong, once."""
        self._once.warning(f"guest {self.cid} {what}; this is logged once")

    def _begin(self, own: Address, header: Header) -> None:
        connection = Connection(own, Address(self.cid, header.src_port), self._buf_alloc, State.ASKED)
        connection.note_credit(header)
        stream = self._streams[own, header.src_port] = Stream(connection, self)
        self._asked(stream)

    def _refuse(self, header: Header) -> None:
        if header.op != Operation.RST:
            self._reply(header.answer(Operation.RST))

    def _reply(self, header: Header) -> None:
        self._replies.append(header)
        self.work.unpark_all()

    def _next_reply(self) -> Header | None:
        if not self._replies:
            return None
        if self.is_full:
            self.room.unpark_all()
        return self._replies.popleft()

    def _next_packet(self, payload: Sequence[memoryview]) -> Header | None:
        """Return the next packet of a connection; those that have more to send take turns."""
        while self._ready:
            stream = self._ready.popleft()
            stream.is_queued = False
            header = stream.next_packet(payload)
            if stream.has_work:
                self.has_work(stream)
            if header is not None:
                return header
            if self._replies:
                return self._next_reply()
        return None

    def _count(self) -> int:
        """Return how many connections there are, those included that only the host knows."""
        return max(len(self._streams), len(self._by_fd))

    # The owner of streams

    def watch(self, stream: Stream, sock: socket.socket) -> None:
        """Tell `stream` what happens to its socket. Raises OSError where the system has its limit."""
        self._epoll.register(sock, INTEREST)
        self._by_fd[sock.fileno()] = stream

    def forget(self, stream: Stream, fd: int) -> None:
        """Tell it no more."""
        del self._by_fd[fd]
        self._epoll.unregister(fd)

    def has_work(self, stream: Stream) -> None:
        """Let `stream` send its packets in its turn."""
        if not stream.is_queued:
            stream.is_queued = True
            self._ready.append(stream)
            self.work.unpark_all()

    def is_starved(self, stream: Stream) -> None:
        """Ask the guest again until it can take more packets of `stream`."""
        self._starved.add(stream)
        self._credit_retry_seconds = _CREDIT_RETRY_SECONDS
        self._starving.unpark_all()

    def has_changed(self, stream: Stream) -> None:
        """Tell of a connection that was accepted; forget one that is over."""
        if stream.connection.state is State.CLOSED:
            self._forget_connection(stream)
        else:
            self._changed("opened", stream)

    def _forget_connection(self, stream: Stream) -> None:
        """Forget a connection, and tell the guest unless it has ended it itself."""
        self._starved.discard(stream)
        connection = stream.connection
        key = connection.own, connection.peer.port
        if self._streams.get(key) is stream:  # else it was refused late, and another one is there
            del self._streams[key]
            self._changed("closed" if stream.was_open else "refused", stream)
        if connection.owes_reset:
            self._reply(connection.reset_packet())

    # Tasks

    async def watch_sockets(self) -> None:
        """Tell streams what happens to their sockets; runs until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.look_at_sockets()

    def look_at_sockets(self) -> None:
        """Tell streams what has happened to their sockets so far."""
        for fd, events in self._epoll.poll(0, _EVENTS):
            if (stream := self._by_fd.get(fd)) is not None:
                stream.on_events(events)

    async def ask_again(self) -> None:
        """Ask guests that read slowly for credit, at longer and longer intervals; runs until cancelled.

        Linux tells of its own accord that it has read something, but not before much of its room is used,
        which small packets do not do (before 6.8), or only once it has read all of them.
        """
        while True:
            if not self._starved:
                await self._starving.park()
            await trio.sleep(self._credit_retry_seconds)
            self._credit_retry_seconds = min(2 * self._credit_retry_seconds, _LONGEST_CREDIT_RETRY_SECONDS)
            for stream in list(self._starved):
                if stream.ask_again():
                    self.has_work(stream)
                else:
                    self._starved.discard(stream)

    async def expire(self) -> None:
        """Reset connections that somebody does not answer; runs until cancelled."""
        while True:
            await trio.sleep(_EXPIRY_POLL_SECONDS)
            now = trio.current_time()
            for stream in self.streams:
                if stream.deadline <= now:
                    stream.reset()
