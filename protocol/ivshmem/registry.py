"""Who is connected to an ivshmem server, and who must be told of whom; no I/O.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem server".
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
    """No id is free that every connected client would survive."""


@dataclass(eq=False, slots=True)
class Member:
    """A connected client: what it is to be sent, and how the others know it."""

    announcement: Announcement
    joined: int
    session: ServerSession = field(default_factory=ServerSession)

    @property
    def id(self) -> int:
        """The client's id."""
        return self.announcement.id


class _Vacancy(NamedTuple):
    """A slot whose client has left; those who joined before `since` know its eventfds."""

    id: int
    announcement: Announcement
    since: int


class Registry:
    """The members of one server, and the messages that joins and leaves give rise to.

    With `sticky`, a leave is kept from the others: the slot (id and eventfds) waits for the next
    client. That avoids what crashes QEMU after a disconnect, at the price that peers get no notice.
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
        """Iterate over the members in the order they joined."""
        return iter(self._members.values())

    def join(self, make_eventfds: Callable[[int], Sequence[OwnedFd]]) -> Member:
        """Admit a client: queue its set-up, and its connect notification for the others.

        `make_eventfds(vectors)` is called where no vacant slot brings eventfds along; what it
        raises goes through. Raises IdsExhaustedError. Nothing has changed where this raises.
        The member owns the eventfds until `leave()`.
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
        """Let a client go: queue its disconnect notification for the others, or vacate its slot."""
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
        """How many ids, from 0 on, `reserve()` has taken out."""
        return self._ids.reserved

    def reserve(self, count: int) -> None:
        """Give no client one of the first `count` ids: others have them of whom we do not know.

        Call it before the first client joins, and later with fewer: the rest is given then, too.
        """
        self._ids.reserve(count)

    @property
    def available_ids(self) -> int:
        """How many clients may still join, be it one after the other, before somebody else leaves."""
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
