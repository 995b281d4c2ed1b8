"""Which id the next client of an ivshmem server may have.

A QEMU that sees an id again after it saw its disconnect uses freed memory, so an id becomes free
only when nobody who saw it leave is connected any more.
"""

from __future__ import annotations

import heapq
from collections import deque

from protocol.ivshmem.messages import MAX_ID


class IdAllocator:
    """Hands out the lowest id that no connected client has seen leave.

    Times are any growing integers, the same clock for all calls.
    """

    def __init__(self) -> None:
        self.reserved = 0
        """How many ids, from 0 on, are not ours to give."""
        self._unused = 0
        self._free: list[int] = []
        self._left: deque[tuple[int, int]] = deque()

    def reserve(self, count: int) -> None:
        """Give none of the first `count` ids from now on; called again with fewer, it frees the others."""
        if self._unused == self.reserved < count:  # before the first client
            self.reserved = self._unused = min(count, MAX_ID + 1)
        for id_ in range(count, self.reserved):
            heapq.heappush(self._free, id_)
        self.reserved = min(self.reserved, count)

    def allocate(self, oldest_join: int | None) -> int | None:
        """Return an id for a new client, or None where there is none.

        `oldest_join` is when the longest-connected client joined, None where there is no client.
        """
        self._set_free(oldest_join)
        if self._free:
            return heapq.heappop(self._free)
        if self._unused > MAX_ID:
            return None
        self._unused += 1
        return self._unused - 1

    def available(self, oldest_join: int | None) -> int:
        """Return how many ids there are for new clients, of MAX_ID + 1."""
        self._set_free(oldest_join)
        return len(self._free) + MAX_ID + 1 - self._unused

    def release(self, id_: int, now: int) -> None:
        """Note that the client `id_` left at the time `now`, no earlier than any other call's."""
        self._left.append((now, id_))

    def _set_free(self, oldest_join: int | None) -> None:
        while self._left and (oldest_join is None or self._left[0][0] < oldest_join):
            heapq.heappush(self._free, self._left.popleft()[1])
