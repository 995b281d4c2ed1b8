"""Members that join and leave: the messages of each client, however slowly it reads."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.errors import LocalProtocolError
from protocol.fds import OwnedFd
from protocol.ivshmem import MAX_ID, MAX_VECTORS, IdsExhaustedError, Member, Registry, server_session
from tests.protocol.ivshmem.world import FakeClient, identity, new_eventfds

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def withdrawn_messages_are_forgotten_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it happens in the few steps of a model's run, too."""
    monkeypatch.setattr(server_session, "_WITHDRAWN_KEPT", 0)


clients = st.integers(0, 100)
"""Which client a rule is about: any number, taken modulo how many there are."""


class RegistryModel(RuleBasedStateMachine):
    """A server's registry with clients that read as much as the rules let them.

    `FakeClient` itself asserts that no id comes back to a client that has seen it leave, and its
    session raises for a leave of a peer that it does not know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = OwnedFd(os.memfd_create("memory"))
        self.clients: dict[Member, FakeClient] = {}
        self.others_at_join: dict[Member, set[int]] = {}
        self.known: dict[Member, set[int]] = {}
        """Ids of which each client is to be told, were nobody ever to leave."""
        self.slots: dict[int, list[int]] = {}
        """The eventfds of each id, by their identities: those of its last owner."""
        self.eventfds: list[OwnedFd] = []

    @initialize(vectors=st.integers(1, 3), sticky=st.booleans())
    def start(self, vectors: int, sticky: bool) -> None:
        self.registry = Registry(self.memory.fileno(), vectors, sticky=sticky)

    def make_eventfds(self, count: int) -> list[OwnedFd]:
        made = new_eventfds(count)
        self.eventfds += made
        return made

    def chosen(self, number: int) -> tuple[Member, FakeClient]:
        return list(self.clients.items())[number % len(self.clients)]

    @precondition(lambda self: len(self.clients) < 8)
    @rule()
    def join(self) -> None:
        queued = {member: member.session.queued for member in self.clients}
        member = self.registry.join(self.make_eventfds)
        for other, before in queued.items():
            told = 0 if member.id in self.known[other] and self.registry.sticky else self.registry.vectors
            assert other.session.queued == before + told
        eventfds = [identity(fd) for fd in member.announcement.eventfds]
        if self.registry.sticky and member.id in self.slots:
            assert eventfds == self.slots[member.id]
        self.slots[member.id] = eventfds
        self.others_at_join[member] = {other.id for other in self.clients}
        for other in self.clients:
            self.known[other].add(member.id)
        self.known[member] = self.others_at_join[member].copy()
        self.clients[member] = FakeClient(member.session)

    @precondition(lambda self: self.clients)
    @rule(number=clients)
    def leave(self, number: int) -> None:
        member, _ = self.chosen(number)
        del self.clients[member], self.known[member], self.others_at_join[member]
        queued = {other: other.session.queued for other in self.clients}
        self.registry.leave(member)
        assert all(fd.closed != self.registry.sticky for fd in member.announcement.eventfds)
        if self.registry.sticky:
            assert {other: other.session.queued for other in self.clients} == queued

    @precondition(lambda self: self.clients)
    @rule(number=clients, most=st.integers(1, 6), sizes=st.lists(st.integers(1, 8), min_size=1))
    def read_some(self, number: int, most: int, sizes: list[int]) -> None:
        _, client = self.chosen(number)
        client.take(most, itertools.cycle(sizes))

    @precondition(lambda self: self.clients)
    @rule(number=clients)
    def read_all(self, number: int) -> None:
        """Check the counters against the messages that really come, and what the client knows then."""
        member, client = self.chosen(number)
        queued, backlog = member.session.queued, member.session.backlog
        set_up = 0
        while len(client.vectors) < self.registry.vectors:
            assert client.take(1) == 1
            set_up += 1
            assert client.memory is not None or set_up <= 3
        assert set_up == queued - backlog
        assert client.take_all() == backlog
        assert (member.session.queued, member.session.backlog) == (0, 0)
        self.check_view(member, client)

    @rule()
    def read_everything(self) -> None:
        for number in range(len(self.clients)):
            self.read_all(number)

    def check_view(self, member: Member, client: FakeClient) -> None:
        assert client.id == member.id
        assert client.memory == os.fstat(self.memory.fileno()).st_ino
        assert client.vectors == self.slots[member.id]
        members = {other.id for other in self.clients} - {member.id}
        vacant_slots = self.known[member] - members if self.registry.sticky else set()
        assert client.peers == {id_: self.slots[id_] for id_ in members | vacant_slots}

    @invariant()
    def everybody_told_is_told_before_the_own_vectors(self) -> None:
        """Who was there at the join and stays comes whole before, and who joins later after them."""
        for member, client in self.clients.items():
            if client.peers_before_vectors is not None:
                staying = self.others_at_join[member] & {other.id for other in self.clients}
                assert set(client.peers_before_vectors) <= self.others_at_join[member]
                if not self.registry.sticky:
                    assert staying <= set(client.peers_before_vectors)
                assert all(client.peers_before_vectors[id_] == self.registry.vectors for id_ in staying)

    @invariant()
    def members_are_those_who_joined(self) -> None:
        assert list(self.registry) == list(self.clients)
        assert len(self.registry) == len(self.clients)

    @invariant()
    def counters_are_possible(self) -> None:
        for member in self.clients:
            assert 0 <= member.session.backlog <= member.session.queued

    def teardown(self) -> None:
        try:
            self.read_everything()
            self.registry.close()
            assert [fd for fd in self.eventfds if not fd.closed] == []
        finally:
            for fd in self.eventfds:
                fd.close()
            self.memory.close()


TestRegistryModel = RegistryModel.TestCase


@pytest.fixture
def memory() -> Iterator[OwnedFd]:
    with OwnedFd(os.memfd_create("memory")) as fd:
        yield fd


@pytest.fixture
def registry(memory: OwnedFd) -> Iterator[Registry]:
    registry = Registry(memory.fileno(), vectors=2)
    yield registry
    registry.close()


@pytest.fixture
def sticky(memory: OwnedFd) -> Iterator[Registry]:
    registry = Registry(memory.fileno(), vectors=2, sticky=True)
    yield registry
    registry.close()


def join(registry: Registry, count: int) -> list[Member]:
    return [registry.join(new_eventfds) for _ in range(count)]


# Ids


def test_ids_count_up_from_0(registry: Registry) -> None:
    assert [member.id for member in join(registry, 4)] == [0, 1, 2, 3]


def test_id_of_one_who_left_is_not_given_out_before_the_witnesses(registry: Registry) -> None:
    witness, gone = join(registry, 2)
    registry.leave(gone)
    later = registry.join(new_eventfds)
    assert later.id == 2
    registry.leave(witness)
    assert [member.id for member in join(registry, 2)] == [1, 3]


def test_empty_server_starts_with_0_again(registry: Registry) -> None:
    for member in join(registry, 3):
        registry.leave(member)
    assert registry.join(new_eventfds).id == 0


def test_exhausted_ids_change_nothing(memory: OwnedFd) -> None:
    registry = Registry(memory.fileno(), vectors=1)
    witness = registry.join(new_eventfds)
    for _ in range(MAX_ID):
        registry.leave(registry.join(new_eventfds))
    queued, made = witness.session.queued, list[OwnedFd]()

    def make_eventfds(count: int) -> list[OwnedFd]:
        made.extend(new_eventfds(count))
        return made

    with pytest.raises(IdsExhaustedError):
        registry.join(make_eventfds)
    assert [fd.closed for fd in made] == [True]
    assert (list(registry), witness.session.queued) == ([witness], queued)
    registry.leave(witness)
    assert registry.join(new_eventfds).id == 0
    registry.close()


def test_failing_eventfds_change_nothing(registry: Registry) -> None:
    [member] = join(registry, 1)
    queued = member.session.queued

    def fail(_: int) -> list[OwnedFd]:
        raise OSError(24, "Too many open files")

    with pytest.raises(OSError, match="Too many open files"):
        registry.join(fail)
    assert (list(registry), member.session.queued) == ([member], queued)
    assert registry.join(new_eventfds).id == 1


# Leaving


def test_leave_closes_the_eventfds(registry: Registry) -> None:
    [member] = join(registry, 1)
    registry.leave(member)
    assert all(fd.closed for fd in member.announcement.eventfds)


def test_second_leave_is_our_bug(registry: Registry) -> None:
    [member] = join(registry, 1)
    registry.leave(member)
    with pytest.raises(LocalProtocolError, match="client 0 is not connected"):
        registry.leave(member)


def test_second_leave_spares_who_got_the_id_next(registry: Registry) -> None:
    [member] = join(registry, 1)
    registry.leave(member)
    [successor] = join(registry, 1)
    assert successor.id == member.id
    with pytest.raises(LocalProtocolError, match="client 0 is not connected"):
        registry.leave(member)
    assert list(registry) == [successor]


def test_close_closes_the_eventfds_of_members_and_slots(sticky: Registry) -> None:
    stays, leaves = join(sticky, 2)
    sticky.leave(leaves)
    sticky.close()
    assert all(fd.closed for member in (stays, leaves) for fd in member.announcement.eventfds)
    assert (len(sticky), sticky.vacant) == (0, 0)


# Slots


def test_slot_is_taken_over_with_its_eventfds(sticky: Registry) -> None:
    _, leaves, _ = join(sticky, 3)
    eventfds = leaves.announcement.eventfds
    sticky.leave(leaves)
    assert sticky.vacant == 1
    successor = sticky.join(lambda count: pytest.fail("the slot has eventfds"))
    assert (successor.id, successor.announcement.eventfds) == (1, eventfds)
    assert sticky.vacant == 0


def test_lowest_slot_is_taken_first(sticky: Registry) -> None:
    members = join(sticky, 4)
    for number in (2, 1, 3):
        sticky.leave(members[number])
    assert [member.id for member in join(sticky, 4)] == [1, 2, 3, 4]


def test_who_knows_a_slot_hears_nothing_of_it(sticky: Registry) -> None:
    stays, leaves = join(sticky, 2)
    queued = stays.session.queued
    for _ in range(3):
        sticky.leave(leaves)
        [leaves] = join(sticky, 1)
        assert stays.session.queued == queued


def test_who_came_while_a_slot_was_vacant_is_told_when_it_is_taken(sticky: Registry) -> None:
    first, second = join(sticky, 2)
    sticky.leave(first)
    sticky.leave(second)
    [late] = join(sticky, 1)
    client = FakeClient(late.session)
    client.take_all()
    assert (client.id, client.peers) == (0, {})
    [member] = join(sticky, 1)
    client.take_all()
    assert client.peers == {1: [identity(fd) for fd in member.announcement.eventfds]}


# Sizes


@pytest.mark.parametrize("vectors", [0, -1, MAX_VECTORS + 1])
def test_impossible_number_of_vectors(memory: OwnedFd, vectors: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"{vectors} vectors: 1..2048 are possible"):
        Registry(memory.fileno(), vectors)


def test_most_vectors(memory: OwnedFd) -> None:
    registry = Registry(memory.fileno(), MAX_VECTORS)
    with OwnedFd(os.eventfd(0, os.EFD_CLOEXEC)) as shared:
        member = registry.join(lambda count: [shared] * count)
        client = FakeClient(member.session)
        assert client.take_all() == 3 + MAX_VECTORS
        assert len(client.vectors) == MAX_VECTORS


def test_number_of_messages_for_many_clients(registry: Registry) -> None:
    """All to all: (N - 1) * V messages a client, beside version, id, memory and its own vectors."""
    members = join(registry, 50)
    assert sum(FakeClient(member.session).take_all() for member in members) == 50 * (3 + 2 + 49 * 2)
