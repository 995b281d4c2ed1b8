"""The in-flight buffer: what was taken from a ring and not given back, kept where a crash leaves it.

vhost-user, "Inflight I/O tracking". The order of the stores is the point: a process may be killed
between any two of them, and the next one finds its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.virtio import inflight
from vhost_user.ring.base import BrokenRingError

if TYPE_CHECKING:
    from vhost_user.ring.base import Done


class SplitInflight:
    """One split queue's part of the buffer."""

    def __init__(self, region: memoryview, size: int) -> None:
        """`region` has the `inflight.queue_bytes()` of a queue. Raises BrokenRingError for one too small."""
        self._size = size
        self._bytes, self._words, self._longs = casts(
            region, inflight.SPLIT_HEADER_SIZE + inflight.SPLIT_ENTRY_SIZE * size
        )
        self._counter = 0

    def recover(self, used_index: int) -> list[int] | None:
        """Return the heads that were in flight, oldest first; None in a buffer that was never used.

        `used_index` is the used ring's. Raises BrokenRingError for a buffer of another size or version.
        """
        words = self._words
        if not words[inflight.HEADER_VERSION]:
            words[inflight.HEADER_SIZE] = self._size
            # Not zero: the ring may have run before it had this buffer.
            words[inflight.USED_INDEX] = used_index
            words[inflight.HEADER_VERSION] = inflight.VERSION
            return None
        check_header(words, self._size)
        self._finish_last_batch(used_index)
        heads = [head for head in range(self._size) if self._bytes[self._place(head)]]
        heads.sort(key=lambda head: self._longs[self._counter_place(head)])
        if heads:
            self._counter = self._longs[self._counter_place(heads[-1])] + 1
        return heads

    def fetch(self, head: int) -> None:
        """Note that a chain was taken."""
        place = self._place(head)
        if self._bytes[place]:
            raise BrokenRingError(f"descriptor {head} was made available again while it is in use")
        self._longs[self._counter_place(head)] = self._counter
        self._counter += 1
        self._bytes[place] = 1

    def forget(self, head: int) -> None:
        """Note that the chain taken last was put back."""
        self._bytes[self._place(head)] = 0

    def finish(self, done: Done) -> None:
        """Note which chains are about to be given back, before the used ring's index says so."""
        words = self._words
        for element, _ in done:
            head = element.head
            words[self._place(head) // 2 + inflight.SPLIT_NEXT] = words[inflight.LAST_BATCH_HEAD]
            words[inflight.LAST_BATCH_HEAD] = head

    def published(self, done: Done, used_index: int) -> None:
        """Note that the used ring's index says so."""
        for element, _ in done:
            self._bytes[self._place(element.head)] = 0
        self._words[inflight.USED_INDEX] = used_index

    def _finish_last_batch(self, used_index: int) -> None:
        """Do what `published()` could not, if we died between the used ring's index and the end of it."""
        words = self._words
        count = used_index - words[inflight.USED_INDEX] & 0xFFFF
        head = words[inflight.LAST_BATCH_HEAD]
        if count > self._size:
            # No batch is larger than the ring: the driver has set up a new one, where nothing is in flight.
            for stale in range(self._size):
                self._bytes[self._place(stale)] = 0
            count = 0
        for _ in range(count):
            if head >= self._size:
                break
            self._bytes[self._place(head)] = 0
            head = words[self._place(head) // 2 + inflight.SPLIT_NEXT]
        words[inflight.USED_INDEX] = used_index

    @staticmethod
    def _place(head: int) -> int:
        return inflight.SPLIT_HEADER_SIZE + inflight.SPLIT_ENTRY_SIZE * head

    @staticmethod
    def _counter_place(head: int) -> int:
        return (inflight.SPLIT_HEADER_SIZE + inflight.SPLIT_ENTRY_SIZE * head) // 8 + inflight.SPLIT_COUNTER


def casts(region: memoryview, size: int) -> tuple[memoryview, memoryview, memoryview]:
    """Return a queue's part as bytes, words of 16 and words of 64 bits. Raises BrokenRingError."""
    if len(region) < size:
        raise BrokenRingError(f"the in-flight buffer has {len(region)} bytes for a queue that needs {size}")
    part = region[:size]
    return part, part.cast("H"), part.cast("Q")


def check_header(words: memoryview, size: int) -> None:
    """Raise BrokenRingError for a part that somebody used for another queue or in another way."""
    version, entries = words[inflight.HEADER_VERSION], words[inflight.HEADER_SIZE]
    if version != inflight.VERSION or entries != size:
        raise BrokenRingError(
            f"the in-flight buffer has version {version} and {entries} entries, not 1 and {size}"
        )
