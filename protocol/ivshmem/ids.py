"""Allocation of ids to the clients of an ivshmem server.

A QEMU to which an id is announced again after its disconnect uses freed memory. So an id becomes free
only when no client that was told of the disconnect is connected any longer.
"""

from __future__ import annotations

import heapq
from collections import deque

from protocol.ivshmem.messages import MAX_ID


class IdAllocator:
    """Allocates the lowest id whose disconnect no connected client was told of.

    Times are growing integers, of one clock for all calls.
    """

    def __init__(self) -> None:
        self.reserved = 0
        """How many ids, from 0 on, are never allocated."""
        self._unused = 0
        self._free: list[int] = []
        self._left: deque[tuple[int, int]] = deque()

    def reserve(self, count: int) -> None:
        """Allocate none of the first `count` ids from now on; a later call with fewer frees the others."""
        if self._unused == self.reserved < count:  # before the first client
            self.reserved = self._unused = min(count, MAX_ID + 1)
        for id_ in range(count, self.reserved):
            heapq.heappush(self._free, id_)
        self.reserved = min(self.reserved, count)

    def allocate(self, oldest_join: int | None) -> int | None:
        """Return an id for a new client, or None if none is free.

        `oldest_join` is the time at which the longest-connected client joined, None without clients.
        """
        self._set_free(oldest_join)
        if self._free:
            return heapq.heappop(self._free)
        if self._unused > MAX_ID:
            return None
        self._unused += 1
        return self._unused - 1

    def available(self, oldest_join: int | None) -> int:
        """Return how many of the MAX_ID + 1 ids are free for new clients."""
        self._set_free(oldest_join)
        return len(self._free) + MAX_ID + 1 - self._unused

    def release(self, id_: int, now: int) -> None:
        """Record that the client `id_` left at the time `now`, not earlier than that of any earlier call."""
        self._left.append((now, id_))

    def _set_free(self, oldest_join: int | None) -> None:
        while self._left and (oldest_join is None or self._left[0][0] < oldest_join):
            heapq.heappush(self._free, self._left.popleft()[1])
