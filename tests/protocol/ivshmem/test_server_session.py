"""The server's side of a connection: messages, their order, and those still queued."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from protocol.errors import LocalProtocolError
from protocol.ivshmem import (
    MAX_ID,
    MEMORY_MESSAGE,
    PROTOCOL_VERSION,
    Announcement,
    Message,
    Refusal,
    ServerSession,
)
from tests.protocol.ivshmem.streams import Descriptors
from tests.protocol.ivshmem.world import take_messages, values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from protocol.fds import OwnedFd

VECTORS = 2


@pytest.fixture
def fds() -> Iterator[Descriptors]:
    with Descriptors() as made:
        yield made


class Eventfds(list["OwnedFd"]):
    """A list that a test can see go."""


class Peers:
    """Announcements with ids and times that count up from 0."""

    def __init__(self, fds: Descriptors) -> None:
        self._fds = fds
        self._count = 0

    def new(self, vectors: int = VECTORS) -> Announcement:
        self._count += 1
        return Announcement(self._count - 1, self._count, Eventfds(self._fds.new() for _ in range(vectors)))


@pytest.fixture
def peers(fds: Descriptors) -> Peers:
    return Peers(fds)


def welcomed(fds: Descriptors, own: Announcement, *others: Announcement) -> ServerSession:
    session = ServerSession()
    session.welcome(own, Message(MEMORY_MESSAGE, fds.new().fileno()), others)
    return session


def leave(session: ServerSession, peer: Announcement) -> None:
    session.peer_left(peer)
    peer.withdraw()


def send(session: ServerSession, count: int) -> None:
    for _ in range(count):
        assert session.next_message() is not None
        session.sent()


# Order


def test_set_up_is_version_id_memory_peers_own_vectors(fds: Descriptors, peers: Peers) -> None:
    first, second, own = peers.new(), peers.new(), peers.new()
    session = welcomed(fds, own, first, second)
    session.peer_joined(peers.new())
    assert values(take_messages(session)) == [
        (PROTOCOL_VERSION, 0),
        (2, 0),
        (MEMORY_MESSAGE, 1),
        *[(0, 1)] * VECTORS,
        *[(1, 1)] * VECTORS,
        *[(2, 1)] * VECTORS,
        *[(3, 1)] * VECTORS,
    ]


def test_vectors_come_in_order(fds: Descriptors, peers: Peers) -> None:
    own = peers.new(vectors=5)
    session = welcomed(fds, own)
    assert take_messages(session)[3:] == list(own.messages)
    passed = [message.ancillary[0][2] for message in own.messages]
    assert passed == [fd.fileno().to_bytes(4, "little") for fd in own.eventfds]


def test_message_has_one_descriptor_at_most(fds: Descriptors, peers: Peers) -> None:
    session = welcomed(fds, peers.new(), peers.new())
    assert {count for _, count in values(take_messages(session))} == {0, 1}


def test_joins_and_leaves_come_in_the_order_they_happened(fds: Descriptors, peers: Peers) -> None:
    session = welcomed(fds, peers.new())
    take_messages(session)
    first, second = peers.new(vectors=1), peers.new(vectors=1)
    session.peer_joined(first)
    session.peer_joined(second)
    send(session, 2)
    leave(session, second)
    session.peer_joined(peers.new(vectors=1))
    leave(session, first)
    assert values(take_messages(session)) == [(2, 0), (3, 1), (1, 0)]


def test_peers_share_their_messages(fds: Descriptors, peers: Peers) -> None:
    """A join costs no object a client: the memory of a large server depends on it."""
    peer = peers.new()
    sessions = [welcomed(fds, peers.new()) for _ in range(3)]
    for session in sessions:
        session.peer_joined(peer)
        assert take_messages(session)[-VECTORS:] == list(peer.messages)


# What has not been sent when a peer leaves


def test_join_and_leave_unsent_are_never_sent(fds: Descriptors, peers: Peers) -> None:
    session = welcomed(fds, peers.new())
    take_messages(session)
    peer = peers.new()
    session.peer_joined(peer)
    leave(session, peer)
    assert session.queued == 0
    assert session.next_message() is None


def test_of_a_join_begun_the_rest_is_not_sent_but_the_leave_is(fds: Descriptors, peers: Peers) -> None:
    session = welcomed(fds, peers.new())
    take_messages(session)
    peer = peers.new(vectors=4)
    session.peer_joined(peer)
    session.peer_joined(peers.new(vectors=1))
    send(session, 1)
    leave(session, peer)
    assert session.queued == 2
    assert values(take_messages(session)) == [(2, 1), (1, 0)]


def test_message_offered_but_not_sent_is_withdrawn(fds: Descriptors, peers: Peers) -> None:
    """The transport asked for it, and the socket was full."""
    session = welcomed(fds, peers.new())
    take_messages(session)
    peer = peers.new()
    session.peer_joined(peer)
    assert session.next_message() is peer.messages[0]
    leave(session, peer)
    assert session.next_message() is None


def test_peer_that_leaves_during_the_set_up(fds: Descriptors, peers: Peers) -> None:
    begun, unsent, own = peers.new(), peers.new(), peers.new()
    session = welcomed(fds, own, begun, unsent)
    send(session, 4)
    assert (session.queued, session.backlog) == (5, 0)
    leave(session, unsent)
    assert (session.queued, session.backlog) == (3, 0)
    leave(session, begun)
    assert (session.queued, session.backlog) == (3, 1)
    assert values(take_messages(session)) == [(2, 1), (2, 1), (0, 0)]


def test_leave_before_anything_was_sent(fds: Descriptors, peers: Peers) -> None:
    other, own = peers.new(), peers.new()
    session = welcomed(fds, own, other)
    leave(session, other)
    assert values(take_messages(session)) == [(0, 0), (1, 0), (MEMORY_MESSAGE, 1), (1, 1), (1, 1)]


def test_peers_that_come_and_go_unseen_take_no_memory(fds: Descriptors, peers: Peers) -> None:
    """A client that does not read is disconnected for what it leaves unread; these it never has to read."""
    session = welcomed(fds, peers.new())
    send(session, 1)

    def come_and_go() -> weakref.ref[Sequence[OwnedFd]]:
        peer = peers.new(vectors=1)
        session.peer_joined(peer)
        leave(session, peer)
        return weakref.ref(peer.eventfds)

    gone = [come_and_go() for _ in range(2000)]
    gc.collect()
    assert session.queued == 2 + VECTORS
    assert sum(kept() is not None for kept in gone) < 200


# Counters


def test_backlog_leaves_out_the_own_set_up(fds: Descriptors, peers: Peers) -> None:
    session = welcomed(fds, peers.new(), peers.new())
    assert (session.queued, session.backlog) == (3 + 2 * VECTORS, 0)
    session.peer_joined(peers.new())
    assert (session.queued, session.backlog) == (3 + 3 * VECTORS, VECTORS)
    send(session, 3 + 2 * VECTORS)
    assert (session.queued, session.backlog) == (VECTORS, VECTORS)
    send(session, 1)
    assert (session.queued, session.backlog) == (VECTORS - 1, VECTORS - 1)


# Refusing


@pytest.mark.parametrize("refusal", Refusal)
def test_refusal_is_one_message_in_the_place_of_the_version(refusal: Refusal) -> None:
    session = ServerSession()
    session.refuse(refusal)
    assert (session.queued, session.backlog) == (1, 0)
    assert values(take_messages(session)) == [(refusal, 0)]


# Our own bugs


def test_new_client_is_told_of_nobody(fds: Descriptors, peers: Peers) -> None:
    session = ServerSession()
    peer = peers.new()
    for notify in (session.peer_joined, session.peer_left):
        with pytest.raises(LocalProtocolError, match="the client is new, not welcomed"):
            notify(peer)
    assert session.next_message() is None


def test_refused_client_is_told_nothing_more(fds: Descriptors, peers: Peers) -> None:
    session = ServerSession()
    session.refuse(Refusal.FULL)
    with pytest.raises(LocalProtocolError, match="the client is refused, not new"):
        session.welcome(peers.new(), Message(MEMORY_MESSAGE, fds.new().fileno()), [])
    with pytest.raises(LocalProtocolError, match="the client is refused, not welcomed"):
        session.peer_joined(peers.new())
    assert session.queued == 1


def test_client_is_welcomed_once(fds: Descriptors, peers: Peers) -> None:
    own = peers.new()
    session = welcomed(fds, own)
    with pytest.raises(LocalProtocolError, match="the client is welcomed, not new"):
        session.welcome(own, Message(MEMORY_MESSAGE, fds.new().fileno()), [])
    with pytest.raises(LocalProtocolError, match="the client is welcomed, not new"):
        session.refuse(Refusal.FULL)


def test_client_is_not_told_of_its_own_leave(fds: Descriptors, peers: Peers) -> None:
    own = peers.new()
    session = welcomed(fds, own)
    with pytest.raises(LocalProtocolError, match="client 0 cannot be sent its own leave"):
        session.peer_left(own)


def test_nothing_is_sent_that_was_not_due() -> None:
    with pytest.raises(LocalProtocolError, match="no message was due"):
        ServerSession().sent()


@pytest.mark.parametrize("id_", [-1, MAX_ID + 1])
def test_announcement_of_an_impossible_id(id_: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"{id_} is not a peer id"):
        Announcement(id_, 0, [])


def test_withdraw_closes_the_eventfds(fds: Descriptors, peers: Peers) -> None:
    peer = peers.new()
    peer.withdraw()
    assert fds.open() == []
