"""Peers that join and leave: an iterator for each task that asks."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from weakref import WeakSet

import trio


@dataclass(frozen=True)
class PeerJoined:
    """The peer `id` has joined, and each of its `vectors` can be rung."""

    id: int
    vectors: int


@dataclass(frozen=True)
class PeerLeft:
    """The peer `id` has left and cannot be rung any more. Its id may come again."""

    id: int


Change = PeerJoined | PeerLeft
"""What `Peer.changes()` yields."""


class Changes(AsyncIterator[Change]):
    """The changes since it was made, in order; the iteration ends when the server has gone.

    Cancelled, it loses none. One that is no longer referred to costs nothing.
    """

    def __init__(self) -> None:
        self._queue: deque[Change] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        self._ended = False

    async def __anext__(self) -> Change:
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            await self._readers.park()
        return self._queue.popleft()

    def put(self, change: Change) -> None:
        """Add a change."""
        self._queue.append(change)
        self._readers.unpark()

    def end(self) -> None:
        """End the iteration after the changes that were put."""
        self._ended = True
        self._readers.unpark_all()


class Subscriptions:
    """Every iterator over the same changes. They live as long as somebody else holds them."""

    def __init__(self) -> None:
        self._all: WeakSet[Changes] = WeakSet()
        self.ended = False
        """True once no change can come any more."""

    def subscribe(self) -> Changes:
        """Return an iterator over the changes from now on."""
        changes = Changes()
        self._all.add(changes)
        if self.ended:
            changes.end()
        return changes

    def put(self, change: Change) -> None:
        """Tell every subscriber."""
        for changes in self._all:
            changes.put(change)

    def end(self) -> None:
        """End every iteration."""
        self.ended = True
        for changes in self._all:
            changes.end()
