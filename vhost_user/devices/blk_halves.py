"""Large reads in two halves, at the same time: copying out of the page cache keeps one processor busy."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from vhost_user.chain import Readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    Job: TypeAlias = tuple[int, Sequence[memoryview], int, int]

WORTH_HALVING = 1 << 19
"""Bytes below which waking a thread costs more than it saves."""

_PAGE_MASK = 4095


def has_processor_to_spare() -> bool:
    """Tell whether two threads run at the same time here."""
    return len(os.sched_getaffinity(0)) > 1


class HalfReader:
    """A thread that does the second half of a read. Used by one thread at a time."""

    def __init__(self) -> None:
        """Start it; `close()` ends it."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[int | OSError] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="half reader", daemon=True)
        self._thread.start()

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int, length: int) -> int:
        """Do what os.preadv() does, for buffers of `length` bytes; both halves may come out short."""
        rest = Readable(buffers, length)
        half = length // 2 & ~_PAGE_MASK
        first = rest.first(half)
        rest.advance(half)
        self._jobs.put((fd, rest.buffers, offset + half, flags))
        try:
            count = os.preadv(fd, first, offset, flags)
        finally:
            other = self._results.get()  # also after an error: the buffers must be left alone by then
        if isinstance(other, OSError):
            raise other
        return count + other

    def close(self) -> None:
        """End the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._results.put(os.preadv(*job))
            except OSError as error:
                self._results.put(error)
