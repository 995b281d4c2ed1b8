"""Ranges of bytes under change: requests that share a block go one after the other."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class RangeLock:
    """Ranges of bytes that threads are at work on.

    Those who change whole blocks share a range with each other: which of them is last is the guest's
    affair. Who puts blocks together out of what is there and what is new has them alone, or it would
    write back what another one has replaced meanwhile. Each waits only for those that came before, so
    that no request waits for ever.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._tickets = itertools.count()
        self._held: dict[int, tuple[int, int, bool]] = {}
        """Start, end, and whether alone, of those at work and those who wait, in the order they came."""
        self._alone = 0
        """How many of them are to be alone."""
        self._waiting = 0

    def __len__(self) -> int:
        """Return how many are at work or wait."""
        return len(self._held)

    @contextmanager
    def hold(self, start: int, end: int, *, alone: bool = False) -> Iterator[None]:
        """Have the bytes from `start` up to `end` for the length of the block; wait for those before."""
        with self._mutex:  # quicker than through the condition
            ticket = next(self._tickets)
            self._held[ticket] = start, end, alone
            self._alone += alone
        try:
            if self._alone:
                self._wait(ticket)
            yield
        finally:
            with self._mutex:
                del self._held[ticket]
                self._alone -= alone
                if self._waiting:
                    self._changed.notify_all()

    def _wait(self, ticket: int) -> None:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._is_held_up(ticket))
            finally:
                self._waiting -= 1

    def _is_held_up(self, ticket: int) -> bool:
        start, end, alone = self._held[ticket]
        for other, (first, last, is_alone) in self._held.items():
            if other == ticket:
                return False
            if (alone or is_alone) and first < end and start < last:
                return True
        return False
