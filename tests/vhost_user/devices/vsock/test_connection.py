"""Both ends of a connection of a socket device, and one against a peer that does what it likes."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio.vsock import Header, Operation, Shutdown
from vhost_user.devices.vsock.connection import Address, Connection, Event, State

GUEST, HOST = Address(3, 1000), Address(2, 80)


class End:
    """One end, with the stream of bytes behind it, and a check that no end ever sends what it must not."""

    def __init__(self, own: Address, peer: Address, buf_alloc: int, state: State) -> None:
        self.connection = Connection(own, peer, buf_alloc, state)
        self.buf_alloc = buf_alloc
        self.to_send = 0
        """How many bytes there are to be sent."""
        self.ends = Shutdown.NONE
        """What this end will say that it does no more, once it has sent everything."""
        self.sent = bytearray()
        self.held = bytearray()
        self.packets_held: deque[int] = deque()
        self.peer_is_polite = True
        """The peer is a Connection, which keeps to a number of packets, too."""
        self.passed_on = bytearray()

    def packets(self) -> list[tuple[Header, bytes]]:
        """Return what can be sent now."""
        found = []
        connection = self.connection
        while True:
            if connection.owes_reset:
                found.append((connection.reset_packet(), b""))
            elif (header := connection.next_packet()) is not None:
                found.append((header, b""))
            elif self.to_send and (credit := connection.credit):
                data = bytes((len(self.sent) + number) & 0xFF for number in range(min(credit, self.to_send)))
                found.append((connection.data_packet(len(data)), data))
                self.sent += data
                self.to_send -= len(data)
            elif self.to_send and connection.wants_data:
                connection.starve()
            else:
                break
        if self.ends and (not self.to_send or not connection.can_send) and connection.state is State.OPEN:
            self.ends, how = Shutdown.NONE, self.ends
            connection.shut_down(how)
            found += self.packets()
        return found

    def take(self, header: Header, payload: bytes) -> None:
        """Take a packet of the peer's, as the user of a connection does."""
        event = self.connection.receive(header)
        if event is Event.DATA:
            self.held += payload
            self.packets_held.append(len(payload))
            assert len(self.held) <= self.buf_alloc, "the peer was let overrun the buffer"
            few = len(self.packets_held) in range(2) or len(self.packets_held) * 1024 <= self.buf_alloc
            assert few or not self.peer_is_polite, "credit is of bytes, and we do not send more packets"
        assert self.connection.held == len(self.held) or event is not Event.DATA

    def pass_on(self, count: int) -> None:
        """Pass bytes on to whatever is behind."""
        data = self.held[:count]
        del self.held[:count]
        self.passed_on += data
        while self.packets_held and self.packets_held[0] <= count:
            count -= self.packets_held.popleft()
        if self.packets_held:
            self.packets_held[0] -= count
        self.connection.forwarded(len(data))


class Pair:
    """Two ends, and packets under way between them, in order."""

    def __init__(self, buffers: tuple[int, int]) -> None:
        self.ends = [
            End(GUEST, HOST, buffers[0], State.ASKING),
            End(HOST, GUEST, buffers[1], State.ASKED),
        ]
        self.under_way: list[deque[tuple[Header, bytes]]] = [deque(), deque()]
        self.was_asked = self.accepts = False

    def accept(self) -> None:
        """Accept the connection once it is asked for."""
        self.accepts = True
        if self.was_asked:
            self.ends[1].connection.accept()

    def send(self, number: int) -> None:
        """Have an end send what it can."""
        self.under_way[number].extend(self.ends[number].packets())

    def deliver(self, number: int) -> None:
        """Give the other end a packet of this one's."""
        if not self.under_way[number]:
            return
        header, payload = self.under_way[number].popleft()
        other = self.ends[1 - number]
        if header.op == Operation.REQUEST:
            other.connection.note_credit(header)
            self.was_asked = True
            if self.accepts:
                self.accept()
        elif other.connection.state is State.CLOSED:
            if header.op != Operation.RST:  # it belongs to no connection
                self.under_way[1 - number].append((header.answer(Operation.RST), b""))
        else:
            other.take(header, payload)

    def settle(self) -> None:
        """Let everything happen that is to happen."""
        for _ in range(10_000):
            for number in (0, 1):
                self.send(number)
            if not any(self.under_way):
                self.ask_again()
            if not any(self.under_way):
                return
            for number in (0, 1):
                self.deliver(number)
            for end in self.ends:
                end.pass_on(1 << 20)
        pytest.fail("packets go to and fro for ever")

    def ask_again(self) -> None:
        """Have both ends do what they do after a while where nothing happens."""
        for number, end in enumerate(self.ends):
            if end.to_send and end.connection.is_crowded:
                end.connection.ask_again()
                self.send(number)

    def check(self) -> None:
        """Fail where bytes were lost, invented or mixed up, or more were sent than there was room for."""
        for end, other in zip(self.ends, reversed(self.ends), strict=True):
            assert end.sent.startswith(other.passed_on + other.held)


_buffer = st.integers(1, 99) | st.integers(1024, 8192)
buffers = st.tuples(_buffer, _buffer)
steps = st.lists(
    st.tuples(
        st.sampled_from(["send", "deliver", "write", "pass on", "accept"]),
        st.integers(0, 1),
        st.integers(1, 50),
    ),
    max_size=40,
)
ways = st.sampled_from([Shutdown.SEND, Shutdown.RECEIVE, Shutdown.BOTH])


def play(pair: Pair, todo: list[tuple[str, int, int]]) -> None:
    for what, number, count in todo:
        end = pair.ends[number]
        if what == "send":
            pair.send(number)
        elif what == "deliver":
            pair.deliver(number)
        elif what == "write":
            end.to_send += count
        elif what == "pass on":
            end.pass_on(count)
        else:
            pair.accept()
        pair.check()


@given(buffers, steps)
def test_bytes_arrive_in_order_and_none_is_lost(
    sizes: tuple[int, int], todo: list[tuple[str, int, int]]
) -> None:
    """With whatever buffers, and whoever is slow: no more is ever sent than there is room for."""
    pair = Pair(sizes)
    play(pair, todo)
    pair.accept()
    pair.settle()
    for end, other in zip(pair.ends, reversed(pair.ends), strict=True):
        assert other.passed_on == end.sent
        assert not end.to_send


@given(buffers, steps, st.tuples(ways, ways), steps, st.integers(0, 1))
def test_every_order_of_shutdowns_ends_with_both_sides_closed(
    sizes: tuple[int, int],
    before: list[tuple[str, int, int]],
    how: tuple[Shutdown, Shutdown],
    between: list[tuple[str, int, int]],
    who: int,
) -> None:
    pair = Pair(sizes)
    play(pair, before)
    pair.accept()
    pair.ends[who].ends |= how[0]
    play(pair, between)
    pair.ends[1 - who].ends |= how[1]
    pair.settle()
    for end in pair.ends:
        end.ends |= Shutdown.BOTH
    pair.settle()
    pair.check()
    assert [end.connection.state for end in pair.ends] == [State.CLOSED] * 2


@given(buffers, steps, steps, st.integers(0, 1))
def test_what_was_sent_before_a_clean_end_arrives(
    sizes: tuple[int, int], before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], who: int
) -> None:
    pair = Pair(sizes)
    play(pair, before)
    pair.accept()
    pair.settle()
    ending, other = pair.ends[who], pair.ends[1 - who]
    ending.ends |= Shutdown.BOTH
    play(pair, [step for step in after if step[0] != "write" or step[1] == who])
    pair.settle()
    assert ending.to_send == 0 or ending.connection.state is State.CLOSED
    assert other.passed_on == ending.sent
    assert other.connection.has_ended


@given(buffers, steps, steps, st.integers(0, 1))
def test_reset_at_any_time_ends_both_sides(
    sizes: tuple[int, int], before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], who: int
) -> None:
    pair = Pair(sizes)
    play(pair, before)
    knows = pair.ends[who].connection.state is not State.ASKING or not pair.ends[who].connection.wants_packet
    pair.ends[who].connection.reset()
    play(pair, [step for step in after if step[0] != "accept"])
    pair.settle()
    pair.check()
    assert pair.ends[who].connection.state is State.CLOSED
    if knows:
        assert pair.ends[1 - who].connection.state is State.CLOSED


words = st.integers(0, 0xFFFF_FFFF)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 70), st.integers(0, 7), words, words, st.booleans())
    ),
    st.sampled_from([State.ASKING, State.ASKED]),
)
def test_peer_that_does_what_it_likes(
    packets: list[tuple[int, int, int, int, int, bool]], state: State
) -> None:
    """It never makes us hold more than we said, nor send more than it said, nor answer without end."""
    end = End(HOST, GUEST, 64, state)
    end.to_send = 1 << 40
    end.peer_is_polite = False
    connection = end.connection
    for op, length, flags, buf_alloc, fwd_cnt, passes_on in packets:
        if state is State.ASKED:
            connection.accept()
        before = connection.state
        end.take(Header(*GUEST, *HOST, length, 1, op, flags, buf_alloc, fwd_cnt), bytes(length))
        assert connection.held <= 64
        if before is State.CLOSED:
            assert not connection.wants_packet
            assert not connection.owes_reset
        if connection.credit:
            assert connection.credit <= buf_alloc
        sent = [connection.next_packet() for _ in range(6)]
        assert sent[-1] is None
        assert connection.owes_reset <= (connection.state is State.CLOSED)
        if connection.owes_reset:
            assert connection.reset_packet().op == Operation.RST
        if passes_on:
            end.pass_on(32)


def opened(buf_alloc: int = 100, *, peer_alloc: int = 100) -> Connection:
    """Return an end that the peer has asked for and that was accepted, its RESPONSE being sent."""
    connection = Connection(HOST, GUEST, buf_alloc, State.ASKED)
    connection.note_credit(packet(Operation.REQUEST, buf_alloc=peer_alloc))
    connection.accept()
    response = connection.next_packet()
    assert response is not None
    assert response.op == Operation.RESPONSE
    return connection


def packet(
    op: Operation, length: int = 0, *, flags: int = 0, buf_alloc: int = 100, fwd_cnt: int = 0
) -> Header:
    return Header(*(GUEST.cid, HOST.cid, GUEST.port, HOST.port, length, 1, op, flags, buf_alloc, fwd_cnt))


def operations(connection: Connection) -> list[str]:
    found = []
    while (header := connection.next_packet()) is not None:
        found.append(Operation(header.op).name)
    return found


def test_every_packet_tells_of_our_room() -> None:
    connection = opened(100)
    assert connection.receive(packet(Operation.RW, 30)) is Event.DATA
    connection.forwarded(20)
    header = connection.data_packet(5)
    assert (header.buf_alloc, header.fwd_cnt) == (100, 20)
    assert (header.src_cid, header.src_port, header.dst_cid, header.dst_port) == (*HOST, *GUEST)


def test_credit_is_told_once_half_of_the_room_is_free_again() -> None:
    connection = opened(100)
    connection.receive(packet(Operation.RW, 100))
    connection.forwarded(49)
    assert operations(connection) == []
    connection.forwarded(1)
    assert operations(connection) == ["CREDIT_UPDATE"]
    connection.forwarded(50)
    connection.data_packet(1)  # which tells it as well
    assert operations(connection) == []


def test_credit_is_asked_for_once() -> None:
    connection = opened(peer_alloc=10_000)
    connection.data_packet(10_000)
    wanted = [connection.wants_data]
    connection.starve()
    wanted.append(connection.wants_data)
    assert wanted == [True, False]
    connection.starve()
    assert operations(connection) == ["CREDIT_REQUEST"]
    connection.receive(packet(Operation.CREDIT_UPDATE, buf_alloc=10_000, fwd_cnt=4))
    assert connection.credit == 4


@pytest.mark.parametrize(
    ("peer_alloc", "most"), [(1, 1), (3000, 1), (8192, 7), (262_144, 255), (1 << 31, 4096)]
)
def test_small_packets_are_no_more_than_the_peer_has_room_to_keep(peer_alloc: int, most: int) -> None:
    """Its room is for bytes, but Linux counts what packets cost to keep, and resets the connection."""
    connection = opened(peer_alloc=peer_alloc)
    sent = 0
    while connection.credit:
        connection.data_packet(1)
        sent += 1
    assert sent == most
    assert operations(connection) == ["CREDIT_REQUEST"] * (most > 1), "in time, when half of them are sent"
    connection.starve()
    assert operations(connection) == ["CREDIT_REQUEST"]
    for fwd_cnt in (0, 1):
        connection.receive(packet(Operation.CREDIT_UPDATE, buf_alloc=peer_alloc, fwd_cnt=fwd_cnt))
        assert bool(connection.credit) == bool(fwd_cnt)
        connection.ask_again()
        assert operations(connection) == ["CREDIT_REQUEST"] * (not fwd_cnt)


@pytest.mark.parametrize(("buf_alloc", "fwd_cnt"), [(5, 0), (100, 11), (0, 10), (0xFFFF_FFFF, 0xFFFF_FFFF)])
def test_peer_whose_room_makes_no_sense_gets_nothing(buf_alloc: int, fwd_cnt: int) -> None:
    """It takes back room that it gave, or has passed on more than was sent."""
    connection = opened()
    connection.data_packet(10)
    connection.receive(packet(Operation.CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt))
    assert connection.credit <= max(buf_alloc - 10, 0)


def test_counters_begin_again_at_their_end() -> None:
    connection = opened(1 << 20, peer_alloc=1 << 20)
    total = 0
    while total < (1 << 32) + (1 << 21):
        connection.data_packet(1 << 20)
        assert connection.credit == 0
        assert connection.receive(packet(Operation.RW, 1 << 20)) is Event.DATA
        connection.forwarded(1 << 20)
        total += 1 << 20
        connection.receive(packet(Operation.CREDIT_UPDATE, buf_alloc=1 << 20, fwd_cnt=total & 0xFFFF_FFFF))
        assert connection.credit == 1 << 20
        assert connection.held == 0


@pytest.mark.parametrize(
    ("first", "second", "events"),
    [
        (Shutdown.SEND, Shutdown.RECEIVE, [Event.ENDED, Event.CLOSED]),
        (Shutdown.RECEIVE, Shutdown.SEND, [Event.DEAF, Event.CLOSED]),
        (Shutdown.SEND, Shutdown.SEND, [Event.ENDED, None]),
        (Shutdown.NONE, Shutdown.BOTH, [None, Event.CLOSED]),
    ],
)
def test_shutdown_of_the_peer(first: Shutdown, second: Shutdown, events: list[Event | None]) -> None:
    connection = opened()
    got = [connection.receive(packet(Operation.SHUTDOWN, flags=int(how))) for how in (first, second)]
    assert got == events
    assert connection.owes_reset == (events[-1] is Event.CLOSED)


def test_our_shutdown_tells_all_that_we_do_no_more() -> None:
    connection = opened()
    flags: list[int | None] = []
    for how in (Shutdown.SEND, Shutdown.SEND, Shutdown.RECEIVE):
        connection.shut_down(how)
        header = connection.next_packet()
        flags.append(None if header is None else header.flags)
    assert flags == [Shutdown.SEND, None, Shutdown.BOTH]
    assert connection.is_closing
    assert connection.receive(packet(Operation.RW, 30)) is None  # it was under way
    assert connection.held == 0
    assert connection.receive(packet(Operation.RST)) is Event.RESET
    assert not connection.owes_reset


@pytest.mark.parametrize(
    "wrong",
    [
        *(Operation.INVALID, Operation.REQUEST, Operation.RESPONSE, 99),
        pytest.param(packet(Operation.RW, 101), id="more than there is room for"),
    ],
)
def test_what_breaks_the_protocol_resets_the_connection(wrong: Operation | Header) -> None:
    connection = opened(100)
    header = wrong if isinstance(wrong, Header) else packet(Operation.RW)._replace(op=int(wrong))
    assert connection.receive(header) is Event.RESET
    assert connection.owes_reset
    assert connection.reset_packet().op == Operation.RST


def test_data_after_the_end_resets_the_connection() -> None:
    connection = opened()
    connection.receive(packet(Operation.SHUTDOWN, flags=int(Shutdown.SEND)))
    assert connection.receive(packet(Operation.RW, 1)) is Event.RESET


def test_peer_that_was_never_asked_is_told_nothing() -> None:
    connection = Connection(HOST, GUEST, 100, State.ASKING)
    connection.reset()
    assert not connection.owes_reset
    assert operations(connection) == []
