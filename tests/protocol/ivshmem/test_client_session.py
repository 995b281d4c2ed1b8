"""The client's side: each rule for a server's messages, byte by byte."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.ivshmem import (
    MAX_ID,
    MAX_VECTORS,
    MEMORY_MESSAGE,
    ClientSession,
    Event,
    IdAssigned,
    MemoryReceived,
    PeerDisconnected,
    Refusal,
    VectorReceived,
)
from tests.protocol.ivshmem.streams import (
    Client,
    Descriptors,
    Sent,
    garbage,
    owned,
    server_streams,
    spoilt_streams,
)

OWN = 7


def expected_events(stream: list[Sent], fds: Descriptors) -> list[Event]:
    """Return what a client should see of a well-formed stream whose descriptors are all of `fds`."""
    unused = iter(fds.made)
    own = stream[1].value
    events: list[Event] = [IdAssigned(own), MemoryReceived(next(unused))]
    vectors: dict[int, int] = {}
    for message in stream[3:]:
        if message.has_fd:
            vector = vectors.get(message.value, 0)
            vectors[message.value] = vector + 1
            events.append(VectorReceived(message.value, vector, next(unused)))
        else:
            del vectors[message.value]
            events.append(PeerDisconnected(message.value))
    return events


def set_up(fds: Descriptors, *, own: int = OWN) -> Client:
    """Return a client that has its id and the memory."""
    client = Client()
    client.take_message(0)
    client.take_message(own)
    client.take_message(MEMORY_MESSAGE, fds.new())
    return client


# What servers may send


@given(server_streams(), st.lists(st.integers(1, 8), min_size=1))
def test_any_split_of_a_stream_gives_the_same_events(stream: list[Sent], sizes: list[int]) -> None:
    with Descriptors() as fds:
        client, repeated = Client(), itertools.cycle(sizes)
        for message in stream:
            passed = [fds.new()] if message.has_fd else []
            client.take_in_pieces(message.value, passed, repeated)
        assert client.events == expected_events(stream, fds)
        assert owned(client.events) == fds.open() == fds.made


@given(server_streams())
def test_each_message_makes_its_event_at_once(stream: list[Sent]) -> None:
    with Descriptors() as fds:
        client = Client()
        completed = [
            client.take_message(message.value, *([fds.new()] if message.has_fd else ())) for message in stream
        ]
        assert completed == [[], *([event] for event in expected_events(stream, fds))]


@given(server_streams())
def test_descriptor_in_the_middle_of_a_message_belongs_to_it(stream: list[Sent]) -> None:
    """It is what a server that writes eight bytes piecemeal, and the descriptor late, would do."""
    with Descriptors() as fds:
        client = Client()
        for message in stream:
            data = message.value.to_bytes(8, "little", signed=True)
            client.take(data[:3])
            client.take(data[3:], [fds.new()] if message.has_fd else [])
        assert client.events == expected_events(stream, fds)


@pytest.mark.parametrize("size", range(1, 8))
def test_bytes_wanted_never_crosses_a_message(size: int) -> None:
    session = ClientSession()
    assert session.bytes_wanted == 8
    session.receive(bytes(size))
    assert session.bytes_wanted == 8 - size
    session.receive(bytes(8 - size))
    assert session.bytes_wanted == 8


def test_own_vectors_are_counted() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        assert client.session.vectors == 0
        client.take_message(3, fds.new())
        assert client.session.vectors == 0
        for count in range(1, 4):
            client.take_message(OWN, fds.new())
            assert client.session.vectors == count


def test_peer_that_comes_back_counts_its_vectors_from_0() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        for _ in range(2):
            client.take_message(3, fds.new())
            client.take_message(3, fds.new())
            client.take_message(3)
        peer = [event for event in client.events if isinstance(event, VectorReceived)]
        assert [event.vector for event in peer] == [0, 1, 0, 1]


def test_peer_may_have_2048_vectors_and_no_more() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        for _ in range(MAX_VECTORS):
            client.take_message(3, fds.new())
        with pytest.raises(RemoteProtocolError, match="peer 3 has more than 2048 vectors"):
            client.take_message(3, fds.new())
        assert fds.made[-1].closed


@pytest.mark.parametrize("id_", [0, MAX_ID])
def test_lowest_and_highest_id(id_: int) -> None:
    with Descriptors() as fds:
        assert set_up(fds, own=id_).session.id == id_


# What servers may not send


@given(garbage | spoilt_streams())
def test_garbage_raises_remote_protocol_error_and_loses_nothing(reads: list[tuple[bytes, int]]) -> None:
    """Once it has raised, it raises always."""
    errors: list[str] = []
    with Descriptors() as fds:
        client = Client()
        for data, count in reads:
            try:
                client.take(data, [fds.new() for _ in range(count)])
                assert errors == []
            except RemoteProtocolError as error:
                errors.append(str(error))
                assert fds.open() == owned(client.events)
        client.session.close()
        assert fds.open() == owned(client.events)
    assert [error for error in errors if len(error.splitlines()) != 1] == []


@given(server_streams(), st.integers(0, 7), st.data())
def test_end_inside_a_message_is_an_error(stream: list[Sent], size: int, data: st.DataObject) -> None:
    """At a boundary of messages it is one before the set-up is complete only."""
    complete = data.draw(st.integers(0, len(stream)))
    with Descriptors() as fds:
        client = Client()
        for message in stream[:complete]:
            client.take_message(message.value, *([fds.new()] if message.has_fd else ()))
        if size:
            client.take(bytes(size), [fds.new()])
        if complete >= 3 and not size:
            assert client.take(b"") == []
        else:
            with pytest.raises(RemoteProtocolError, match=f"{size} of 8 bytes" if size else "during set-up"):
                client.take(b"")
        assert fds.open() == owned(client.events)


@pytest.mark.parametrize(
    ("messages", "due"),
    [([], "its protocol version"), ([0], "our id"), ([0, OWN], "the shared memory")],
)
def test_end_during_set_up_says_what_was_due(messages: list[int], due: str) -> None:
    client = Client()
    for value in messages:
        client.take_message(value)
    assert client.session.expected == due
    with pytest.raises(RemoteProtocolError, match=f"closed during set-up, where {due} was due"):
        client.take(b"")


def test_after_the_memory_our_vectors_are_expected() -> None:
    with Descriptors() as fds:
        assert set_up(fds).session.expected == "our vectors"


@pytest.mark.parametrize("count", [2, 3, 253])
def test_message_with_several_descriptors(count: int) -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        with pytest.raises(RemoteProtocolError, match=f"message 3 came with {count} file descriptors"):
            client.take_message(3, *(fds.new() for _ in range(count)))
        assert fds.open() == owned(client.events)


def test_descriptors_in_several_pieces_of_one_message() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        client.take(b"\3", [fds.new()])
        with pytest.raises(RemoteProtocolError, match="message 3 came with 2 file descriptors"):
            client.take(bytes(7), [fds.new()])
        assert fds.open() == owned(client.events)


def test_more_bytes_than_asked_for() -> None:
    client = Client()
    with pytest.raises(RemoteProtocolError, match="9 bytes came where 8 were wanted"):
        client.take(bytes(9))


@pytest.mark.parametrize("version", [-1, -6, 65536, 2**63 - 1, -(2**63)])
def test_unknown_version_is_named_at_once(version: int) -> None:
    client = Client()
    with pytest.raises(
        RemoteProtocolError, match=f"speaks protocol version {version}; this client knows version 0"
    ):
        client.take_message(version)


@pytest.mark.parametrize("version", [1, 2, MAX_ID])
def test_unknown_version_that_could_be_an_id_is_named_next(version: int) -> None:
    """As which a server from before QEMU 2.5 would mean it."""
    client = Client()
    client.take_message(version)
    assert f"protocol version {version};" in client.session.expected
    with pytest.raises(RemoteProtocolError, match=f"speaks protocol version {version};"):
        client.take_message(3)


def test_unknown_version_and_the_end_names_the_version() -> None:
    client = Client()
    client.take_message(5)
    with pytest.raises(RemoteProtocolError, match="speaks protocol version 5;"):
        client.take(b"")


@pytest.mark.parametrize("id_", [0, 1, MAX_ID])
def test_protocol_from_before_qemu_2_5_is_named(id_: int) -> None:
    """It has no version: the id comes first, and the memory next."""
    with Descriptors() as fds:
        client = Client()
        client.take_message(id_)
        with pytest.raises(RemoteProtocolError, match=r"before QEMU 2\.5.*update the server"):
            client.take_message(MEMORY_MESSAGE, fds.new())
        assert fds.open() == []


@pytest.mark.parametrize("refusal", Refusal)
def test_refusal_is_put_in_words(refusal: Refusal) -> None:
    client = Client()
    with pytest.raises(RemoteProtocolError) as caught:
        client.take_message(refusal)
    assert str(caught.value) == f"the server refused: {refusal.text}"


def test_version_with_a_descriptor() -> None:
    with Descriptors() as fds:
        client = Client()
        with pytest.raises(RemoteProtocolError, match=r"version \(0\) came with a file descriptor"):
            client.take_message(0, fds.new())
        assert fds.open() == []


@pytest.mark.parametrize(
    ("value", "has_fd"), [(3, True), (-1, False), (-2, False), (MAX_ID + 1, False), (2**63 - 1, True)]
)
def test_no_id_where_our_id_is_due(value: int, has_fd: bool) -> None:
    with Descriptors() as fds:
        client = Client()
        client.take_message(0)
        with pytest.raises(RemoteProtocolError, match=f"our id was due, 0..65535; got {value} with"):
            client.take_message(value, *([fds.new()] if has_fd else ()))
        assert fds.open() == []


@pytest.mark.parametrize(("value", "has_fd"), [(-1, False), (OWN, True), (3, True), (3, False)])
def test_no_memory_where_the_memory_is_due(value: int, has_fd: bool) -> None:
    """QEMU dies of vectors that come first: nothing may."""
    with Descriptors() as fds:
        client = Client()
        client.take_message(0)
        client.take_message(OWN)
        with pytest.raises(RemoteProtocolError, match=f"the shared memory was due.*got {value} with"):
            client.take_message(value, *([fds.new()] if has_fd else ()))
        assert fds.open() == []


@pytest.mark.parametrize(("value", "has_fd"), [(-1, True), (-1, False), (MAX_ID + 1, True)])
def test_no_peer_where_a_peer_is_due(value: int, has_fd: bool) -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        with pytest.raises(RemoteProtocolError, match=f"a peer id was due, 0..65535; got {value} with"):
            client.take_message(value, *([fds.new()] if has_fd else ()))
        assert fds.open() == owned(client.events)


def test_leave_of_a_peer_that_is_not_there() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        with pytest.raises(RemoteProtocolError, match="peer 3 left, but was not connected"):
            client.take_message(3)


def test_second_leave_of_a_peer() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        client.take_message(3, fds.new())
        client.take_message(3)
        with pytest.raises(RemoteProtocolError, match="peer 3 left, but was not connected"):
            client.take_message(3)


def test_our_own_leave() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        client.take_message(OWN, fds.new())
        with pytest.raises(RemoteProtocolError, match="says that we, peer 7, have left"):
            client.take_message(OWN)


def test_close_closes_what_waits_for_the_rest_of_its_message() -> None:
    with Descriptors() as fds:
        client = set_up(fds)
        client.take(bytes(4), [fds.new()])
        client.session.close()
        client.session.close()
        assert fds.open() == owned(client.events)
        with pytest.raises(RemoteProtocolError, match="given up after an earlier error"):
            client.take(bytes(4))
