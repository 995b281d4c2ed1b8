"""A connection of a guest joined to a socket of the host; nothing in here waits.

How it works: a stream is driven by packets of the guest (`receive()`), by events of its socket
(`on_events()`, edge-triggered: `_readable` remembers what epoll says once) and by room for packets
(`next_packet()`), never by a task of its own. Bytes from the host are read straight into the guest's
buffers, when there is credit for them. Bytes from the guest are sent from its buffers; what the socket does
not take is copied to `_unsent`, at most as much as the credit that the guest was given, and counts as
passed on only when it was sent. The socket is closed once both ends are through, or at once after an RST.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.io import has_hung_up
from protocol.virtio.vsock import Operation, Shutdown
from vhost_user.buffers import IOV_MAX, cut, skip
from vhost_user.devices.vsock.connection import Event, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocol.virtio.vsock import Header
    from vhost_user.devices.vsock.connection import Connection

ANSWER_SECONDS = 30.0
"""How long a guest, or who listens on the host, may take to accept a connection."""
CLOSE_SECONDS = 8.0
"""How long a guest may take to agree that a connection is over; as long as Linux gives us."""

MAX_PAYLOAD = 65536
"""Most bytes in a packet, so that other connections have their turn."""

INTEREST = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""What a socket is watched for: each change is told once."""

_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class StreamOwner(Protocol):
    """What a stream needs around it."""

    def watch(self, stream: Stream, sock: socket.socket) -> None:
        """Call `stream.on_events()` when something happens to `sock`. Raises OSError."""

    def forget(self, stream: Stream, fd: int) -> None:
        """Do not any more: `fd` is about to be closed."""

    def has_work(self, stream: Stream) -> None:
        """Call `stream.next_packet()` once there is room for a packet to the guest."""

    def is_starved(self, stream: Stream) -> None:
        """Call `stream.ask_again()` now and then, until that returns False."""

    def has_changed(self, stream: Stream) -> None:
        """Note that the connection is OPEN, accepted by both sides, or CLOSED.

        The guest knows a closed one no longer, or has to be sent an RST.
        """


class Stream:
    """A connection with its socket, from the first word of it until both are closed.

    It holds at most as many bytes as the connection lets the guest send. A socket whose reader is
    slow keeps the guest from sending, by the credit that it then does not get; no other connection
    notices.
    """

    __slots__ = (
        *("connection", "deadline", "is_queued", "was_open", "_answered", "_at_end", "_owner"),
        *("_readable", "_sock", "_unsent", "_was_reset"),
    )

    def __init__(
        self, connection: Connection, owner: StreamOwner, answered: Callable[[bool], None] | None = None
    ) -> None:
        """Own `connection`. `answered()` is called once the guest has accepted or refused it, if we ask."""
        self.connection = connection
        self.deadline = trio.current_time() + ANSWER_SECONDS
        """When somebody has taken too long."""
        self.is_queued = False
        """For the owner: it is among those that may have something to send."""
        self.was_open = False
        """Both sides have accepted it, though it may be over by now."""
        self._owner = owner
        self._answered = answered
        self._sock: socket.socket | None = None
        self._unsent = bytearray()
        self._readable = False
        self._at_end = False
        self._was_reset = False

    @property
    def has_work(self) -> bool:
        """Tell whether `next_packet()` is worth a try."""
        connection = self.connection
        return connection.wants_packet or (self._readable and connection.wants_data)

    @property
    def is_closed(self) -> bool:
        """True once nothing is left to do: not even to pass on what the guest had sent before its end."""
        return self.connection.state is State.CLOSED and self._sock is None

    # The host's side

    def attach(self, sock: socket.socket) -> None:
        """Own a connected socket from now on; what it holds goes to the guest once that has accepted.

        Raises OSError, having closed it, where it cannot be watched.
        """
        sock.setblocking(False)
        try:
            self._owner.watch(self, sock)
        except OSError:
            sock.close()
            raise
        self._sock = sock

    def accept(self, sock: socket.socket) -> None:
        """Accept what the guest asked for; if it does not want that any more, close `sock`.

        Raises OSError as `attach()` does.
        """
        if self.connection.state is not State.ASKED:
            sock.close()
            return
        self.attach(sock)
        self.connection.accept()
        self._is_open()
        self._owner.has_work(self)

    def reset(self) -> None:
        """End it at once, and tell the guest."""
        self.connection.reset()
        self._end(Event.RESET)

    def on_events(self, events: int) -> None:
        """Note what epoll tells of the socket."""
        if events & select.EPOLLHUP and self._at_end:
            self._host_is_gone()
        if events & _READABLE and not self._at_end:
            self._readable = True
        if events & _WRITABLE:
            self._flush()
        if self.has_work:
            self._owner.has_work(self)

    def close(self) -> None:
        """Close the socket; what was not passed on is lost."""
        if self._sock is not None:
            self._owner.forget(self, self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._unsent = bytearray()
        self._readable = False

    # Packets to the guest

    def next_packet(self, room: Sequence[memoryview]) -> Header | None:
        """Return the next packet's header, its payload being in `room`; None: there is nothing to send."""
        connection = self.connection
        if not connection.wants_packet and self._readable:
            if credit := connection.credit:
                if length := self._read(cut(room, min(credit, MAX_PAYLOAD))):
                    return connection.data_packet(length)
            else:
                connection.starve()
                if connection.is_crowded:
                    self._owner.is_starved(self)
        header = connection.next_packet()
        if header is not None and header.op == Operation.SHUTDOWN and connection.is_closing:
            self.deadline = trio.current_time() + CLOSE_SECONDS
        return header

    def ask_again(self) -> bool:
        """Ask the guest again whether it has read something; return False where there is no need to."""
        connection = self.connection
        if not (self._readable and connection.is_crowded):
            return False
        connection.ask_again()
        return connection.wants_packet

    def _read(self, buffers: list[memoryview]) -> int:
        """Read from the socket into `buffers`; return how many bytes came, 0 where none did."""
        assert self._sock is not None
        try:
            if len(buffers) == 1:
                count = self._sock.recv_into(buffers[0])
            else:
                count = self._sock.recvmsg_into(buffers[:IOV_MAX])[0]
        except BlockingIOError:
            self._readable = False
            return 0
        except OSError:  # its reader left with bytes unread
            self._was_reset = True
            count = 0
        if not count:
            self._host_ended()
        return count

    def _host_ended(self) -> None:
        """Note that no more bytes come from the host."""
        assert self._sock is not None
        self._readable = False
        self._at_end = True
        if self._was_reset or has_hung_up(self._sock.fileno()):
            self._host_is_gone()
        else:
            self.connection.shut_down(Shutdown.SEND)

    def _host_is_gone(self) -> None:
        """End both directions: the host neither reads nor sends any more."""
        self.connection.forwarded(self.connection.held)
        self.close()
        if self._was_reset:
            self.reset()
        else:
            self.connection.shut_down(Shutdown.BOTH)

    # Packets from the guest

    def receive(self, header: Header, payload: Sequence[memoryview]) -> None:
        """Take a packet of the connection's, and pass its payload on."""
        event = self.connection.receive(header)
        if event is Event.DATA:
            self._pass_on(payload, header.length)
        elif event is Event.OPENED:
            self._answer(accepted=True)
            self._is_open()
        elif event is Event.ENDED:
            self._end_if_passed_on()
        elif event is Event.DEAF:
            self._stop_reading()
        elif event is not None:
            self._end(event)
        if self.has_work:
            self._owner.has_work(self)

    def write(self, data: bytes) -> None:
        """Send `data` of our own to the host before anything of the guest's."""
        assert self._sock is not None
        with contextlib.suppress(OSError):  # who has left already is noticed soon enough
            self._sock.send(data, _FLAGS)

    def _pass_on(self, payload: Sequence[memoryview], length: int) -> None:
        """Send the payload to the host, and keep what does not fit in."""
        sent = 0
        if not self._unsent and self._sock is not None:
            try:
                sent = self._sock.sendmsg(payload[:IOV_MAX], (), _FLAGS)
            except BlockingIOError:
                pass
            except OSError as error:
                self._cannot_write(error)
                return
        if sent < length:
            self._unsent += b"".join(skip(payload, sent))
        if sent:
            self.connection.forwarded(sent)

    def _flush(self) -> None:
        """Send what was kept."""
        while self._unsent and self._sock is not None:
            try:
                sent = self._sock.send(self._unsent, _FLAGS)
            except BlockingIOError:
                return
            except OSError as error:
                self._cannot_write(error)
                return
            del self._unsent[:sent]
            self.connection.forwarded(sent)
        self._end_if_passed_on()

    def _cannot_write(self, error: OSError) -> None:
        """Note that the host no longer reads what the guest sends; what it sent is dropped."""
        self._was_reset |= isinstance(error, ConnectionResetError)
        self._unsent = bytearray()
        self.connection.forwarded(self.connection.held)
        self.connection.shut_down(Shutdown.RECEIVE)
        self._end_if_passed_on()

    def _end_if_passed_on(self) -> None:
        """Once all that the guest will ever send is passed on, tell the host so."""
        if self._sock is None or not self.connection.has_ended:
            return
        if self.connection.state is State.CLOSED:
            self.close()
        else:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _stop_reading(self) -> None:
        """Refuse what the host sends: the guest does not receive it."""
        self._readable = False
        self._at_end = True
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def _end(self, event: Event) -> None:
        """Close the socket: at once, or when all is passed on that came before a clean end."""
        self._answer(accepted=False)
        self._readable = False
        self._at_end = True
        if event is Event.RESET:
            self.close()
        else:
            self._end_if_passed_on()
        self._owner.has_changed(self)

    def _is_open(self) -> None:
        """Note that both sides have accepted the connection."""
        self.was_open = True
        self.deadline = math.inf
        self._owner.has_changed(self)

    def _answer(self, *, accepted: bool) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(accepted)
