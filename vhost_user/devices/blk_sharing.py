"""Several large reads at the same time: copying out of the page cache keeps one processor busy."""

from __future__ import annotations

import os
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Read: TypeAlias = tuple[Sequence[memoryview], int]
    Job: TypeAlias = tuple[int, int, Sequence[memoryview], int, int]

WORTH_SHARING = 1 << 17
"""Bytes below which waking a thread costs more than it saves."""


_MOST_HELPERS = 3
"""With more, memory is what keeps them waiting."""


def processors_to_spare() -> int:
    """Return how many threads can run at the same time here, besides the one that asks."""
    return len(os.sched_getaffinity(0)) - 1


class SharedReader:
    """Threads that help with a row of reads. Used by one thread at a time.

    All take the next read from the same queue. So a helper that gets no processor, because others
    are busy there, costs next to nothing: it is waited for only with a read in its hands.
    """

    def __init__(self, helpers: int) -> None:
        """Start at most `helpers` threads; `close()` ends them."""
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="shared reader", daemon=True)
            for _ in range(min(helpers, _MOST_HELPERS))
        ]
        for thread in self._threads:
            thread.start()

    def preadv(self, fd: int, reads: Sequence[Read], flags: int) -> Iterator[tuple[int, int]]:
        """Do what os.preadv() does for each of `reads`, which are buffers with an offset.

        Yields, as they are done, the place of each in `reads` and the bytes that it read: -1 where
        os.preadv() would have raised. Ask until it ends, or the buffers are still written to.
        """
        jobs = [(place, fd, buffers, offset, flags) for place, (buffers, offset) in enumerate(reads)]
        for job in jobs[1:]:
            self._jobs.put(job)
        yield _do(jobs[0])
        for _ in jobs[1:]:
            yield self._next()

    def close(self) -> None:
        """End the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _next(self) -> tuple[int, int]:
        try:
            return self._results.get_nowait()
        except Empty:
            pass
        try:
            job = self._jobs.get_nowait()
        except Empty:
            return self._results.get()
        assert job is not None
        return _do(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._results.put(_do(job))


def _do(job: Job) -> tuple[int, int]:
    place, fd, buffers, offset, flags = job
    try:
        return place, os.preadv(fd, buffers, offset, flags)
    except OSError:
        return place, -1
