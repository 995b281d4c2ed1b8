"""The in-flight buffer of a split ring: chains taken and not given back.

vhost-user, "Inflight I/O tracking". The order of the stores is the point: a process may be killed
between any two of them, and the next one finds its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import inflight
from protocol.words import plural
from vhost_user.ring.ring import BrokenRingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.ring.chain import Chain

_SIZE = inflight.SPLIT_SIZE


# How it works: one writer, this process; one reader, the process after it. An entry is "in flight" from
# fetch(), before the device sees the chain, to published(), after the driver can see the used index. Where
# the index of the last batch differs from that of the used ring, the process died in between: the entries
# of that batch, linked from its last head, are cleared by the next process. Each field is one store.


class SplitInflight:
    """One split queue's part of the buffer."""

    def __init__(self, part: memoryview, size: int) -> None:
        """`part` begins where the queue's part does. Raises BrokenRingError where it is too small."""
        self._size = size
        self._bytes, self._words, self._longs = casts(part, inflight.part_bytes(size, packed=False))
        self._counter = 0

    def recover(self, used: int, available: int) -> list[int] | None:
        """Return the heads that were in flight, oldest first; None in a buffer that this ring never used.

        `used` is the index in the used ring, `available` how many chains the available ring has beyond it.
        Raises BrokenRingError for a buffer of another version.
        """
        words = self._words
        if is_made_for(words, self._size):
            heads = self._settle(used)
            if heads is not None and len(heads) <= available:
                self._counter = 1 + max(map(self._counter_of, heads), default=-1)
                return heads
        words[inflight.VERSION_16] = 0
        for head in range(self._size):
            self.forget(head)
        words[inflight.ENTRIES_16] = self._size
        # Not zero: the ring may have run before it had this buffer.
        words[inflight.USED_INDEX_16] = used
        words[inflight.VERSION_16] = inflight.VERSION
        return None

    def fetch(self, head: int) -> None:
        """Note that a chain was taken. Raises BrokenRingError if it had been before."""
        entry = (head + 1) * _SIZE
        if self._bytes[entry + inflight.SPLIT_INFLIGHT_8]:
            raise BrokenRingError(f"descriptor {head} was made available again while it is in use")
        self._longs[entry // 8 + inflight.SPLIT_COUNTER_64] = self._counter
        self._counter += 1
        self._bytes[entry + inflight.SPLIT_INFLIGHT_8] = 1

    def forget(self, head: int) -> None:
        """Note that the chain taken last was put back."""
        self._bytes[(head + 1) * _SIZE + inflight.SPLIT_INFLIGHT_8] = 0

    def finish(self, done: Sequence[Chain]) -> None:
        """Note which chains are about to be given back, before the used ring's index says so."""
        words = self._words
        last = words[inflight.LAST_BATCH_HEAD_16]
        for chain in done:
            head = chain.head
            words[(head + 1) * _SIZE // 2 + inflight.SPLIT_NEXT_16] = last
            words[inflight.LAST_BATCH_HEAD_16] = last = head

    def published(self, done: Sequence[Chain], used: int) -> None:
        """Note that the used ring's index says so."""
        for chain in done:
            self._bytes[(chain.head + 1) * _SIZE + inflight.SPLIT_INFLIGHT_8] = 0
        self._words[inflight.USED_INDEX_16] = used

    def _settle(self, used: int) -> list[int] | None:
        """Do what `published()` could not, if we died before its end. Returns what is in flight then.

        None if the buffer was another ring's: no batch is larger than the ring.
        """
        words = self._words
        count = used - words[inflight.USED_INDEX_16] & 0xFFFF
        if count > self._size:
            return None
        head = words[inflight.LAST_BATCH_HEAD_16]
        for _ in range(count):
            if head >= self._size:
                return None
            self.forget(head)
            head = words[(head + 1) * _SIZE // 2 + inflight.SPLIT_NEXT_16]
        words[inflight.USED_INDEX_16] = used
        heads = (h for h in range(self._size) if self._bytes[(h + 1) * _SIZE + inflight.SPLIT_INFLIGHT_8])
        return sorted(heads, key=self._counter_of)

    def _counter_of(self, head: int) -> int:
        return self._longs[(head + 1) * _SIZE // 8 + inflight.SPLIT_COUNTER_64]


def casts(part: memoryview, size: int) -> tuple[memoryview[int], memoryview[int], memoryview[int]]:
    """Return a queue's part as bytes, words of 16 and words of 64 bits. Raises BrokenRingError."""
    if len(part) < size:
        raise BrokenRingError(
            f"the in-flight buffer has {plural(len(part), 'byte')} for a queue that needs {size}"
        )
    return part[:size], part[:size].cast("H"), part[:size].cast("Q")


def is_made_for(words: memoryview, size: int) -> bool:
    """Tell whether a part was used for a queue of `size`. Raises BrokenRingError for an unknown version."""
    version = words[inflight.VERSION_16]
    if version not in (0, inflight.VERSION):
        raise BrokenRingError(f"the in-flight buffer has version {version}; {inflight.VERSION} is known")
    return version != 0 and words[inflight.ENTRIES_16] == size
