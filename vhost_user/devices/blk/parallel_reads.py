"""Large reads in parallel, as copying out of the page cache keeps a processor busy."""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from protocol.io.threads import start_threads

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    Read: TypeAlias = tuple[Sequence[memoryview], int]
    Job: TypeAlias = tuple[int, int, Sequence[memoryview], int, int]

WORTH_SHARING = 1 << 17
"""Bytes below which waking a thread costs more than it saves."""


_MOST_HELPERS = 4
"""With more, memory is what keeps them waiting."""


def processors() -> int:
    """Return how many threads can run at the same time here."""
    return len(os.sched_getaffinity(0))


class ParallelReader:
    """Threads that share a row of reads among them. Used by one thread at a time.

    That one sleeps meanwhile, and does no reads itself: while it is awake on a busy machine, the
    scheduler keeps the helpers that it wakes waiting behind it.
    """

    def __init__(self, helpers: int) -> None:
        """Start at most `helpers` threads, or as many as can be had; `close()` ends them."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._threads = start_threads(
            [
                threading.Thread(target=self._run, name="shared reader", daemon=True)
                for _ in range(min(helpers, _MOST_HELPERS))
            ]
        )

    def preadv(self, fd: int, reads: Sequence[Read], flags: int) -> Generator[tuple[int, int], None, None]:
        """Do what os.preadv() does for each of `reads`, which are buffers with an offset.

        Yields, as they are done, the place of each in `reads` and the bytes that it read: -1 where
        os.preadv() would have raised. Ask until it ends, or close it, which waits for the others:
        the buffers are written to until then.
        """
        jobs = [(place, fd, buffers, offset, flags) for place, (buffers, offset) in enumerate(reads)]
        if len(jobs) == 1 or not self._threads:
            yield from map(_do, jobs)
            return
        for job in jobs:
            self._jobs.put(job)
        left = len(jobs)
        try:
            while left:
                left -= 1
                yield self._results.get()
        finally:
            for _ in range(left):
                self._results.get()

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result = _do(job)
            del job  # or the guest's memory stays mapped until the next one comes
            self._results.put(result)


def _do(job: Job) -> tuple[int, int]:
    place, fd, buffers, offset, flags = job
    try:
        return place, os.preadv(fd, buffers, offset, flags)
    except OSError:
        return place, -1
