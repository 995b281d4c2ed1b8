"""The members of an ivshmem server, and the messages of joins and leaves; no I/O.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem server".

How it works: a join makes an `Announcement` (id and eventfds) and a `Member`. The member's own session
gets its set-up, with the announcements of all others; the sessions of the others get the newcomer's. A
leave queues the disconnect for the others and withdraws the announcement, whose eventfds are closed then:
sessions that have not begun to send it skip it. The id is free again when no client that was told of the
disconnect is connected any longer (`ids`).

Sticky, a leave tells no other member. The slot, with id and eventfds still open, is a vacancy; the next
client gets the vacant slot with the lowest id. Members that joined before the vacancy know the eventfds
already; those that joined since are told of them.

Owners: eventfds belong to the announcement from `join()` until `leave()` or `close()`; the shared
memory's descriptor stays the caller's. Times are ticks of one counter, so that joins, leaves and
vacancies are ordered. The registry lives in one task, and no method waits: each call leaves it whole.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from protocol.errors import LocalProtocolError
from protocol.ivshmem.ids import IdAllocator
from protocol.ivshmem.messages import MAX_VECTORS, MEMORY_MESSAGE
from protocol.ivshmem.server_session import Announcement, Message, ServerSession

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from protocol.fds import OwnedFd


class IdsExhaustedError(Exception):
    """No id is free: a connected client was told of the disconnect of each."""


@dataclass(eq=False, slots=True)
class Member:
    """A connected client: the session with the messages for it, and its announcement to the others."""

    announcement: Announcement
    joined: int
    session: ServerSession = field(default_factory=ServerSession)

    @property
    def id(self) -> int:
        """The client's id."""
        return self.announcement.id


class _Vacancy(NamedTuple):
    """A slot whose client has left; members that joined before `since` know its eventfds."""

    id: int
    announcement: Announcement
    since: int


class Registry:
    """The members of one server; joins and leaves queue messages in their sessions.

    With `sticky`, the others are not told of a leave: the slot (id and eventfds) waits for the next
    client. QEMU, which may crash after a disconnect, then sees none; peers get no notice in return.
    """

    def __init__(self, memory: int, vectors: int, *, sticky: bool = False) -> None:
        """`memory` is the shared memory's descriptor, which stays the caller's; `vectors` 1 to 2048."""
        if not 1 <= vectors <= MAX_VECTORS:
            raise LocalProtocolError(f"{vectors} vectors: 1..{MAX_VECTORS} are possible")
        self.vectors = vectors
        self.sticky = sticky
        self._memory = Message(MEMORY_MESSAGE, memory)
        self._members: dict[int, Member] = {}
        self._vacancies: list[_Vacancy] = []  # a heap: the lowest id first
        self._ids = IdAllocator()
        self._clock = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Iterate over the members in the order in which they joined."""
        return iter(self._members.values())

    def join(self, make_eventfds: Callable[[int], Sequence[OwnedFd]]) -> Member:
        """Admit a client: queue its set-up, and its connect notification for the others.

        `make_eventfds(vectors)` is called if there is no vacant slot, which has eventfds; its exceptions
        are passed on. Raises IdsExhaustedError. After an exception nothing has changed. The member owns
        the eventfds until `leave()`.
        """
        vacancy = heapq.heappop(self._vacancies) if self._vacancies else None
        announcement = vacancy.announcement if vacancy else self._announce(make_eventfds)
        member = Member(announcement, self._tick())
        member.session.welcome(announcement, self._memory, (m.announcement for m in self))
        for other in self:
            if vacancy is None or other.joined > vacancy.since:
                other.session.peer_joined(announcement)
        self._members[member.id] = member
        return member

    def leave(self, member: Member) -> None:
        """Remove a client: queue its disconnect notification for the others, or vacate its slot."""
        if self._members.get(member.id) is not member:
            raise LocalProtocolError(f"client {member.id} is not connected")
        del self._members[member.id]
        if self.sticky:
            heapq.heappush(self._vacancies, _Vacancy(member.id, member.announcement, self._tick()))
            return
        for other in self:
            other.session.peer_left(member.announcement)
        member.announcement.withdraw()
        self._ids.release(member.id, self._tick())

    @property
    def vacant(self) -> int:
        """How many slots wait for a client (sticky only)."""
        return len(self._vacancies)

    @property
    def reserved_ids(self) -> int:
        """How many ids, from 0 on, are reserved."""
        return self._ids.reserved

    def reserve(self, count: int) -> None:
        """Give no client one of the first `count` ids: clients of an earlier server may have them.

        Call it before the first client joins; a later call with fewer frees the others.
        """
        self._ids.reserve(count)

    @property
    def available_ids(self) -> int:
        """How many clients may still join while no member leaves."""
        return self._ids.available(self._oldest_join()) + self.vacant

    def close(self) -> None:
        """Close the eventfds of all members and vacant slots."""
        for member in self._members.values():
            member.announcement.withdraw()
        for vacancy in self._vacancies:
            vacancy.announcement.withdraw()
        self._members.clear()
        self._vacancies.clear()

    def _announce(self, make_eventfds: Callable[[int], Sequence[OwnedFd]]) -> Announcement:
        eventfds = make_eventfds(self.vectors)
        id_ = self._ids.allocate(self._oldest_join())
        if id_ is None:
            for fd in eventfds:
                fd.close()
            raise IdsExhaustedError
        return Announcement(id_, self._tick(), eventfds)

    def _oldest_join(self) -> int | None:
        oldest = next(iter(self), None)
        return oldest.joined if oldest else None

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
