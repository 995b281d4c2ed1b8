"""One end of a connection, without I/O: states, credit, end (virtio 1.3, section 5.10.6).

Both ends of a connection do the same, so an object is one end, whichever; the other one is the peer.
Behind our end is a stream of bytes, such as a socket of the host's: the user of this class moves the
bytes, and says here what became of them.

How it works: ASKING or ASKED become OPEN, and all become CLOSED, from which nothing leads. Each direction
ends by itself, with SHUTDOWN; when the peer has ended both it is owed an RST, and so is a peer that breaks
the protocol. What is to be sent is not a queue of packets but a set of bits (`_due`), one a kind, so that a
peer that asks without end makes nothing grow. Credit is three counters a direction, of 32 bits that wrap:
bytes sent, bytes passed on, and the room that the receiver told of last.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio.vsock import Header, Operation, Shutdown, SocketType

if TYPE_CHECKING:
    from collections.abc import Callable

_COUNTER = 0xFFFF_FFFF
"""Counters of bytes are 32 bits, and begin again at 0."""
_HALF = 1 << 31

PACKET_OVERHEAD = 1024
"""What a packet may cost its receiver besides its bytes.

The specification's credit is of bytes alone, but a receiver has to keep each packet somewhere. Linux resets
a connection (6.12.92 and later, and others of that time) where the packets that wait to be read, 500 to 700
bytes each without their payload, are more than the room that it tells of. Twice that is on the safe side, and
no limit to packets of 4 KiB, as a guest has them where there is much to send.
"""
_MOST_PACKETS = 4096
"""Of one connection that are not known to be read, however much room its peer tells of."""

# Plain integers: an enum's operators would cost as much as all the rest, for every packet.
_RECEIVE, _SEND, _BOTH = int(Shutdown.RECEIVE), int(Shutdown.SEND), int(Shutdown.BOTH)
_REQUEST, _RESPONSE, _SHUTDOWN, _CREDIT_UPDATE, _CREDIT_REQUEST = (1 << bit for bit in range(5))
"""Packets that are due, in the order in which they are sent."""


class Address(NamedTuple):
    """One end of a connection."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"{self.cid}:{self.port}"


class State(Enum):
    """How far a connection is."""

    ASKING = "asking"
    """We ask the peer for a connection, and have no answer yet."""
    ASKED = "asked"
    """The peer asks; what is behind our end has to `accept()`, or `reset()`."""
    OPEN = "open"
    CLOSED = "closed"
    """It is over; a packet that comes belongs to no connection."""


class Event(Enum):
    """What is to be done about a packet of the peer's."""

    OPENED = auto()
    """The peer has accepted the connection."""
    DATA = auto()
    """Its payload is to be passed on; tell of that with `forwarded()`."""
    ENDED = auto()
    """The peer sends no more: once all that came is passed on, end the stream."""
    DEAF = auto()
    """The peer receives no more: reading on is of no use."""
    CLOSED = auto()
    """It is over, cleanly: what came is to be passed on, and the stream to be closed then."""
    RESET = auto()
    """It is over: the stream is to be closed now."""


_OPERATIONS = {
    _REQUEST: Operation.REQUEST,
    _RESPONSE: Operation.RESPONSE,
    _SHUTDOWN: Operation.SHUTDOWN,
    _CREDIT_UPDATE: Operation.CREDIT_UPDATE,
    _CREDIT_REQUEST: Operation.CREDIT_REQUEST,
}


class Connection:
    """One end of a connection between two addresses."""

    def __init__(self, own: Address, peer: Address, buf_alloc: int, state: State) -> None:
        """Be at `own`, and hold at most `buf_alloc` bytes that came. `state` is ASKING or ASKED."""
        self.own = own
        self.peer = peer
        self.state = state
        self.owes_reset = False
        """It was closed by us, and the peer is to be told by an RST, which `reset_packet()` returns."""
        self._buf_alloc = buf_alloc
        self._due = _REQUEST if state is State.ASKING else 0
        # What we send.
        self._tx_cnt = 0
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0
        self._under_way: deque[int] = deque()
        """What `_tx_cnt` was behind each packet that the peer has not passed on, as far as we know."""
        self._asked_for_credit = False
        self._shutdown = 0
        self._told_shutdown = 0
        # What the peer sends.
        self._rx_cnt = 0
        self._fwd_cnt = 0
        self._told_fwd_cnt = 0
        self._peer_shutdown = 0

    @property
    def credit(self) -> int:
        """How many bytes may be sent now."""
        if self.state is not State.OPEN or not self.can_send or self.is_crowded:
            return 0
        under_way = (self._tx_cnt - self._peer_fwd_cnt) & _COUNTER
        return max(self._peer_buf_alloc - under_way, 0)

    @property
    def is_crowded(self) -> bool:
        """True while the peer may have as many packets to pass on as it has room to keep."""
        return len(self._under_way) >= self._most_packets()

    @property
    def can_send(self) -> bool:
        """False once we have ended our direction, or the peer receives no more."""
        return not (self._shutdown & _SEND or self._peer_shutdown & _RECEIVE)

    @property
    def wants_data(self) -> bool:
        """Tell whether it is of use to look for bytes to send: some may be sent, or credit be asked for."""
        return self.state is State.OPEN and self.can_send and (not self._asked_for_credit or self.credit > 0)

    @property
    def held(self) -> int:
        """How many bytes came that are not passed on yet."""
        return (self._rx_cnt - self._fwd_cnt) & _COUNTER

    @property
    def has_ended(self) -> bool:
        """True once all that the peer will ever send is passed on."""
        return not self.held and (self.state is State.CLOSED or bool(self._peer_shutdown & _SEND))

    @property
    def wants_packet(self) -> bool:
        """True while `next_packet()` has something."""
        return bool(self._due)

    @property
    def is_closing(self) -> bool:
        """True once we have said that we neither send nor receive, and wait for the peer to agree."""
        return self.state is State.OPEN and self._told_shutdown == _BOTH

    # What is behind our end

    def accept(self) -> None:
        """Accept the connection that the peer asks for."""
        if self.state is State.ASKED:
            self.state = State.OPEN
            self._due |= _RESPONSE

    def forwarded(self, count: int) -> None:
        """Note that `count` more bytes of what came were passed on, or will never be."""
        self._fwd_cnt = (self._fwd_cnt + count) & _COUNTER
        unsaid = (self._fwd_cnt - self._told_fwd_cnt) & _COUNTER
        # Half of it: the peer can go on meanwhile, and a slow reader causes no packet for every byte.
        if 2 * unsaid >= self._buf_alloc and self._wants_credit():
            self._due |= _CREDIT_UPDATE

    def starve(self) -> None:
        """Ask the peer for credit, once until some bytes were sent: there are bytes, and none may be."""
        if self.state is State.OPEN and self.can_send and not self._asked_for_credit:
            self._asked_for_credit = True
            self._due |= _CREDIT_REQUEST

    def ask_again(self) -> None:
        """Ask for credit again: a peer need not tell by itself that it has passed on some packets."""
        if self.state is State.OPEN and self.can_send and self.is_crowded:
            self._due |= _CREDIT_REQUEST

    def shut_down(self, how: Shutdown) -> None:
        """Say that we send no more, receive no more, or both; what was to be sent has been."""
        if self.state is State.OPEN and how & ~self._shutdown:
            self._shutdown |= int(how)
            self._due |= _SHUTDOWN

    def reset(self) -> None:
        """End it at once."""
        if self.state is not State.CLOSED:
            self.owes_reset = not self._due & _REQUEST  # else the peer knows nothing of it
            self._close()

    # Packets to the peer

    def next_packet(self) -> Header | None:
        """Return a packet without payload, to be sent now; None: there is nothing to say."""
        for due, op in _OPERATIONS.items():
            if self._due & due:
                self._due &= ~due
                flags = 0
                if op is Operation.SHUTDOWN:
                    flags = self._shutdown
                    self._told_shutdown = self._shutdown
                return self._header(op, flags=flags)
        return None

    def data_packet(self, length: int) -> Header:
        """Return the header for `length` bytes, at most `credit`, that are sent now."""
        assert 0 < length <= self.credit, f"{length} bytes with a credit of {self.credit}"
        self._tx_cnt = (self._tx_cnt + length) & _COUNTER
        self._under_way.append(self._tx_cnt)
        self._asked_for_credit = False
        if len(self._under_way) == self._most_packets() // 2:
            self._due |= _CREDIT_REQUEST  # small ones: it may answer before no more may be sent
        return self._header(Operation.RW, length)

    def reset_packet(self) -> Header:
        """Return the RST that ends it."""
        self.owes_reset = False
        return self._header(Operation.RST)

    def _header(self, op: Operation, length: int = 0, *, flags: int = 0) -> Header:
        self._told_fwd_cnt = self._fwd_cnt
        self._due &= ~_CREDIT_UPDATE
        return Header(
            *(self.own.cid, self.peer.cid, self.own.port, self.peer.port, length),
            *(SocketType.STREAM, op, flags, self._buf_alloc, self._fwd_cnt),
        )

    # Packets from the peer

    def receive(self, header: Header) -> Event | None:
        """Take a packet of this connection; return what is to be done, if anything.

        Whatever breaks the protocol resets the connection: see `owes_reset`.
        """
        if self.state is State.CLOSED:
            return None
        self.note_credit(header)
        handle = _HANDLERS.get(header.op)
        return self._break() if handle is None else handle(self, header)

    def note_credit(self, header: Header) -> None:
        """Note what the peer can hold, as each of its packets says, the REQUEST among them."""
        self._peer_buf_alloc = header.buf_alloc
        self._peer_fwd_cnt = header.fwd_cnt
        under_way = self._under_way
        while under_way and (header.fwd_cnt - under_way[0]) & _COUNTER < _HALF:
            under_way.popleft()

    def _most_packets(self) -> int:
        """Return how many packets the peer can keep: one at least, or nothing would ever be sent."""
        return max(1, min(self._peer_buf_alloc // PACKET_OVERHEAD - 1, _MOST_PACKETS))

    def _on_response(self, _: Header) -> Event | None:
        if self.state is not State.ASKING or self._due & _REQUEST:
            return self._break()
        self.state = State.OPEN
        return Event.OPENED

    def _on_rst(self, _: Header) -> Event | None:
        self._close()
        return Event.RESET

    def _on_shutdown(self, header: Header) -> Event | None:
        if self.state is not State.OPEN:
            return self._break()
        before, self._peer_shutdown = self._peer_shutdown, self._peer_shutdown | header.flags & _BOTH
        if self._peer_shutdown == _BOTH:
            self.owes_reset = True
            self._close()
            return Event.CLOSED
        if self._peer_shutdown == before:
            return None
        return Event.ENDED if self._peer_shutdown == _SEND else Event.DEAF

    def _on_rw(self, header: Header) -> Event | None:
        too_much = self.held + header.length > self._buf_alloc
        if self.state is not State.OPEN or self._peer_shutdown & _SEND or too_much:
            return self._break()
        self._rx_cnt = (self._rx_cnt + header.length) & _COUNTER
        if self._shutdown & _RECEIVE:  # it was under way when we said so
            self.forwarded(header.length)
            return None
        return Event.DATA if header.length else None

    def _on_credit_update(self, _: Header) -> Event | None:
        return None

    def _on_credit_request(self, _: Header) -> Event | None:
        if self.state is State.OPEN:
            self._due |= _CREDIT_UPDATE
        return None

    def _wants_credit(self) -> bool:
        """Tell whether the peer has a use for credit."""
        ended = self._peer_shutdown & _SEND or self._shutdown & _RECEIVE
        return self.state is State.OPEN and not ended

    def _break(self) -> Event:
        """End it because the peer did what it must not do."""
        self.reset()
        return Event.RESET

    def _close(self) -> None:
        self.state = State.CLOSED
        self._due = 0
        self._under_way.clear()


_HANDLERS: dict[int, Callable[[Connection, Header], Event | None]] = {
    Operation.RESPONSE: Connection._on_response,
    Operation.RST: Connection._on_rst,
    Operation.SHUTDOWN: Connection._on_shutdown,
    Operation.RW: Connection._on_rw,
    Operation.CREDIT_UPDATE: Connection._on_credit_update,
    Operation.CREDIT_REQUEST: Connection._on_credit_request,
}
