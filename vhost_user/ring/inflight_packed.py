"""The in-flight buffer of a packed ring, which keeps its descriptors, too.

They must be kept because the device gives chains back by overwriting the ring.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from protocol.vhost_user import inflight
from protocol.virtio import packed
from protocol.words import plural
from vhost_user.ring.inflight_split import casts, is_made_for
from vhost_user.ring.packed_place import Place
from vhost_user.ring.ring import BrokenRingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhost_user.ring.chain import Chain
    from vhost_user.ring.words import Words

_SIZE = inflight.PACKED_SIZE
_RING_DESCRIPTOR = struct.Struct(packed.DESCRIPTOR_FORMAT)
_DESCRIPTOR = struct.Struct(inflight.PACKED_DESCRIPTOR_FORMAT)
_POSITION = struct.Struct(inflight.POSITION_FORMAT)
_LONG = struct.Struct("=Q")
_OWNER = packed.AVAIL | packed.USED


# How it works: entries form a free list, and chains in flight lists of their own. A chain's descriptors are
# copied before the free list's head moves on, and its entries return to it when the chain is given back.
# `free_head`, `used_index` and their `old_` copies differ only while a batch is given back. A process that
# finds them differing looks at the ring: where the driver can see the batch, the new ones count, otherwise
# the old ones. The chains of a batch that was not seen are in flight, and are done again.


class InFlight(NamedTuple):
    """What a process that died left behind."""

    entries: list[int]
    """Its chains, oldest first."""
    descriptors: int
    """How many descriptors of the ring they take up."""
    used: Place
    """Where the next chain is given back."""


class PackedInflight:
    """One packed queue's part of the buffer.

    `free_head` and the used place run ahead while a batch is given back; their `old_` fields catch up
    once the driver can see the batch. The used places are one word, so a crash cannot come between them.
    """

    def __init__(self, part: memoryview, size: int) -> None:
        """`part` begins where the queue's part does. Raises BrokenRingError where it is too small."""
        self._size = size
        self._bytes, self._words, self._longs = casts(part, inflight.part_bytes(size, packed=True))
        self._counter = 0

    def recover(self, ring_flags: Words, used: Place) -> InFlight | None:
        """Return what was in flight; None in a buffer that this ring never used.

        `ring_flags` are the ring's words of 16 bits, `used` is where a ring without history starts.
        Raises BrokenRingError for a buffer of another version, or one that makes no sense.
        """
        words = self._words
        if is_made_for(words, self._size):
            found = self._find(self._settle(ring_flags))
            if self._is_of(ring_flags, found):
                self._counter = 1 + max(map(self._counter_of, found.entries), default=-1)
                return found
        words[inflight.VERSION_16] = 0
        words[inflight.ENTRIES_16] = self._size
        for entry in range(self._size):
            self._bytes[self._byte(entry)] = 0
            words[self._word(entry) + inflight.PACKED_NEXT_16] = entry + 1
        words[inflight.FREE_HEAD_16] = words[inflight.OLD_FREE_HEAD_16] = 0
        self._store(used, used)
        words[inflight.VERSION_16] = inflight.VERSION
        return None

    def fetch(self, table: memoryview, slot: int, count: int) -> int:
        """Note that the chain of `count` descriptors from `slot` on was taken. Returns its entry."""
        words = self._words
        first = last = free = words[inflight.FREE_HEAD_16]
        for number in range(slot, slot + count):
            address, length, buffer, flags = _RING_DESCRIPTOR.unpack_from(table, (number % self._size) << 4)
            _DESCRIPTOR.pack_into(
                self._bytes,
                self._byte(free) + inflight.PACKED_DESCRIPTOR_8,
                buffer,
                flags,
                length,
                address,
            )
            last = free
            free = words[self._word(free) + inflight.PACKED_NEXT_16]
        entry = self._word(first)
        words[entry + inflight.PACKED_LAST_16] = last
        words[entry + inflight.PACKED_NUM_16] = count
        self._longs[entry // 4 + inflight.PACKED_COUNTER_64] = self._counter
        self._counter += 1
        self._bytes[self._byte(first)] = 1
        words[inflight.FREE_HEAD_16] = free
        # Up to here it was in the free list, whose entries are not in flight whatever they say.
        words[inflight.OLD_FREE_HEAD_16] = free
        return first

    def forget(self, entry: int) -> None:
        """Note that the chain taken last was put back."""
        words = self._words
        words[inflight.FREE_HEAD_16] = self._link(entry, words[inflight.FREE_HEAD_16])
        words[inflight.OLD_FREE_HEAD_16] = words[inflight.FREE_HEAD_16]
        self._bytes[self._byte(entry)] = 0

    def finish(self, done: Sequence[Chain], used: Place) -> None:
        """Note which chains are about to be given back, and where the next one is then to go."""
        free = self._words[inflight.FREE_HEAD_16]
        for one in done:
            self._words[inflight.FREE_HEAD_16] = free = self._link(one.entry, free)
        self._store(used, self._places()[1])

    def published(self, done: Sequence[Chain]) -> None:
        """Note that the driver can see them."""
        for one in done:
            self._bytes[self._byte(one.entry)] = 0
        self._accept()

    def descriptors(self, entry: int) -> bytes:
        """Return the descriptors of a chain that was in flight, as the ring had them, available again."""
        chain = bytearray()
        for link in self._list(entry, self._words[self._word(entry) + inflight.PACKED_NUM_16]):
            place = self._byte(link) + inflight.PACKED_DESCRIPTOR_8
            buffer, flags, length, address = _DESCRIPTOR.unpack_from(self._bytes, place)
            chain += _RING_DESCRIPTOR.pack(address, length, buffer, flags & ~packed.USED | packed.AVAIL)
        return bytes(chain)

    def _find(self, used: Place) -> InFlight:
        words = self._words
        for entry in self._list(words[inflight.FREE_HEAD_16], self._size):
            self._bytes[self._byte(entry)] = 0
        entries = [entry for entry in range(self._size) if self._bytes[self._byte(entry)]]
        entries.sort(key=self._counter_of)
        total = sum(words[self._word(entry) + inflight.PACKED_NUM_16] for entry in entries)
        if total > self._size:
            raise BrokenRingError(
                f"the in-flight buffer has {plural(total, 'descriptor')} of {self._size} in flight"
            )
        return InFlight(entries, total, used)

    def _is_of(self, ring_flags: Words, found: InFlight) -> bool:
        """Tell whether the ring can be the one that the buffer was used for, and not a newer one.

        A ring is never taken for a newer one wrongly, whatever its driver has written into free
        descriptors and not published. A newer one may be taken for the old one: the front-end is to
        give a buffer of its own to a device that was reset, or else says with SET_VRING_BASE where
        the ring begins.
        """
        slot, wrap = found.used
        if found.entries:
            owner = ring_flags[slot << 3 | packed.DESCRIPTOR_FLAGS] & _OWNER
            if owner != packed.available_flags(wrap):
                return False
        for _ in range(found.descriptors):
            slot += 1
            if slot == self._size:
                slot, wrap = 0, not wrap
        # All other descriptors are free, or available and not taken: not yet used in this lap.
        for _ in range(self._size - found.descriptors):
            if ring_flags[slot << 3 | packed.DESCRIPTOR_FLAGS] & _OWNER == packed.used_flags(wrap):
                return False
            slot += 1
            if slot == self._size:
                slot, wrap = 0, not wrap
        return True

    def _settle(self, ring_flags: Words) -> Place:
        """Complete the last batch if the driver can see it, or take it back. Returns the used place."""
        new, old = self._places()
        if max(new.slot, old.slot) >= self._size:
            raise BrokenRingError(f"the in-flight buffer has a used place outside a ring of {self._size}")
        if new != old:
            flags = ring_flags[old.slot << 3 | packed.DESCRIPTOR_FLAGS]
            if bool(flags & packed.USED) == old.wrap:
                self._accept()
                return new
        self._words[inflight.FREE_HEAD_16] = self._words[inflight.OLD_FREE_HEAD_16]
        self._store(old, old)
        return old

    def _accept(self) -> None:
        new = self._places()[0]
        self._words[inflight.OLD_FREE_HEAD_16] = self._words[inflight.FREE_HEAD_16]
        self._store(new, new)

    def _places(self) -> tuple[Place, Place]:
        word = _LONG.pack(self._longs[inflight.POSITION_64])
        slot, old_slot, wrap, old_wrap = _POSITION.unpack(word)
        return Place(slot, bool(wrap)), Place(old_slot, bool(old_wrap))

    def _store(self, new: Place, old: Place) -> None:
        word = _POSITION.pack(new.slot, old.slot, new.wrap, old.wrap)
        self._longs[inflight.POSITION_64] = _LONG.unpack(word)[0]

    def _link(self, entry: int, free: int) -> int:
        """Put a chain's entries before the free list that begins with `free`. Returns its new beginning."""
        words = self._words
        last = words[self._word(entry) + inflight.PACKED_LAST_16]
        words[self._word(last) + inflight.PACKED_NEXT_16] = free
        return entry

    def _list(self, entry: int, count: int) -> Iterator[int]:
        """Follow a list of entries for at most `count` of them."""
        for _ in range(count):
            if entry >= self._size:
                return
            yield entry
            entry = self._words[self._word(entry) + inflight.PACKED_NEXT_16]

    def _counter_of(self, entry: int) -> int:
        return self._longs[self._word(entry) // 4 + inflight.PACKED_COUNTER_64]

    def _byte(self, entry: int) -> int:
        return self._word(entry) * 2

    def _word(self, entry: int) -> int:
        if entry >= self._size:
            raise BrokenRingError(f"the in-flight buffer refers to entry {entry} of {self._size}")
        return (entry + 1) * (_SIZE // 2)
