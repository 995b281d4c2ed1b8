"""IOTLB: the accesses that the guest's IOMMU permits, as far as the front-end told."""

from __future__ import annotations

from bisect import bisect_right
from enum import IntFlag
from typing import NamedTuple

MAX_ENTRIES = 65536
"""More than these are forgotten together, and asked for again."""


# How it works: the front-end writes entries, by messages; rings read them, in the same thread. An entry that
# is forgotten while a request uses its memory leaves the request as it is: its views keep the mapping.
# A crash loses all entries; the next process asks for each again.


class Access(IntFlag):
    """Permissions of an IOTLB entry."""

    READ = 1
    WRITE = 2


class Entry(NamedTuple):
    """A run of I/O virtual addresses, and the front-end's user address of the first."""

    start: int
    end: int
    user_address: int
    access: Access

    def user(self, iova: int) -> int:
        """Return the user address of `iova`."""
        return self.user_address + iova - self.start


class Iotlb:
    """Entries without overlap, in the order of their addresses."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, iova: int, access: Access) -> Entry | None:
        """Return the entry that holds `iova`, if there is one and it permits `access`."""
        place = bisect_right(self._starts, iova) - 1
        if place < 0:
            return None
        entry = self._entries[place]
        return entry if iova < entry.end and entry.access & access == access else None

    def update(self, iova: int, size: int, user_address: int, access: Access) -> bool:
        """Note what `size` bytes at `iova` are now. Returns whether anything known before was forgotten."""
        forgot = self.invalidate(iova, size)
        if len(self._entries) >= MAX_ENTRIES:
            forgot |= self.invalidate(0, 1 << 64)
        entry = Entry(iova, iova + size, user_address, access)
        place = bisect_right(self._starts, iova)
        before = self._entries[place - 1] if place else None
        after = self._entries[place] if place < len(self._entries) else None
        # Neighbours become one entry, so that a buffer of many pages is one view.
        first = last = place
        if before and _joins(before, entry):
            first, entry = place - 1, before._replace(end=entry.end)
        if after and _joins(entry, after):
            last, entry = place + 1, entry._replace(end=after.end)
        self._replace(first, last, [entry])
        return forgot

    def invalidate(self, iova: int, size: int) -> bool:
        """Forget `size` bytes at `iova`. Returns whether anything of them was known."""
        end = iova + size
        first = bisect_right(self._starts, iova)
        if first and self._entries[first - 1].end > iova:
            first -= 1
        last = first
        while last < len(self._entries) and self._entries[last].start < end:
            last += 1
        if first == last:
            return False
        rest = []
        if self._entries[first].start < iova:
            rest.append(self._entries[first]._replace(end=iova))
        if self._entries[last - 1].end > end:
            tail = self._entries[last - 1]
            rest.append(tail._replace(start=end, user_address=tail.user(end)))
        self._replace(first, last, rest)
        return True

    def _replace(self, first: int, last: int, entries: list[Entry]) -> None:
        self._entries[first:last] = entries
        self._starts[first:last] = [entry.start for entry in entries]


def _joins(left: Entry, right: Entry) -> bool:
    return (
        left.end == right.start and left.user(left.end) == right.user_address and left.access == right.access
    )
