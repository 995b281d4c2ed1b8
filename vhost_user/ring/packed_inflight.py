"""A packed queue's part of the in-flight buffer, which also keeps the descriptors themselves.

They must be kept because the device gives chains back by overwriting the ring.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.virtio import inflight, packed
from vhost_user.ring.base import BrokenRingError
from vhost_user.ring.inflight import casts, check_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.ring.base import Done
    from vhost_user.ring.words import Words

_RING_DESCRIPTOR = struct.Struct(packed.DESCRIPTOR_FORMAT)
_DESCRIPTOR = struct.Struct(inflight.PACKED_DESCRIPTOR_FORMAT)
_POSITION = struct.Struct(inflight.PACKED_POSITION_FORMAT)
_LONG = struct.Struct("=Q")


@dataclass(frozen=True)
class Recovered:
    """What the buffer knows of a process that died."""

    entries: list[int]
    """What was in flight, oldest first."""
    descriptors: int
    """How many descriptors of the ring that takes up."""
    slot: int
    wrap: bool
    """Where the next chain is given back."""


class PackedInflight:
    """One packed queue's part of the buffer.

    `free_head` and the used place run ahead while a batch is given back; what is behind them, under
    `old_`, catches up once the driver can see the batch. The used places are one word of 64 bits
    together, so that no process dies between them.
    """

    def __init__(self, region: memoryview, size: int) -> None:
        """`region` has the `inflight.queue_bytes()` of a queue. Raises BrokenRingError for one too small."""
        self._size = size
        self._bytes, self._words, self._longs = casts(
            region, inflight.PACKED_HEADER_SIZE + inflight.PACKED_ENTRY_SIZE * size
        )
        self._counter = 0

    def recover(self, ring_flags: Words, slot: int, wrap: bool) -> Recovered | None:
        """Return what was in flight; None in a buffer that was never used.

        `ring_flags` are the ring's words of 16 bits, (`slot`, `wrap`) is where an unused one begins.
        Raises BrokenRingError for a buffer of another size or version, or one that holds nonsense.
        """
        words = self._words
        if not words[inflight.HEADER_VERSION]:
            for entry in range(self._size):
                self._set(entry, inflight.PACKED_NEXT, entry + 1)
            words[inflight.HEADER_SIZE] = self._size
            self._store_position((slot, wrap), (slot, wrap))
            words[inflight.HEADER_VERSION] = inflight.VERSION
            return None
        check_header(words, self._size)
        slot, wrap = self._settle(ring_flags)
        for entry in self._list(words[inflight.FREE_HEAD], self._size):
            self._bytes[self._place(entry)] = 0
        entries = [entry for entry in range(self._size) if self._bytes[self._place(entry)]]
        entries.sort(key=self._counter_of)
        if entries:
            self._counter = self._counter_of(entries[-1]) + 1
        total = sum(self._get(entry, inflight.PACKED_NUM) for entry in entries)
        if total > self._size:
            raise BrokenRingError(f"the in-flight buffer has {total} descriptors of {self._size} in flight")
        return Recovered(entries, total, slot, wrap)

    def fetch(self, table: memoryview, slot: int, count: int) -> int:
        """Note that the chain of `count` descriptors from `slot` on was taken. Returns its entry."""
        words = self._words
        entry = free = words[inflight.FREE_HEAD]
        self._set(entry, inflight.PACKED_NUM, 0)
        self._longs[self._place(entry) // 8 + inflight.PACKED_COUNTER] = self._counter
        self._counter += 1
        self._bytes[self._place(entry)] = 1
        for number in range(count):
            self._set(entry, inflight.PACKED_LAST, free)
            self._set(entry, inflight.PACKED_NUM, number + 1)
            address, length, buffer, flags = _RING_DESCRIPTOR.unpack_from(
                table, (slot + number) % self._size * packed.DESCRIPTOR_SIZE
            )
            place = self._place(free) + inflight.PACKED_DESCRIPTOR
            _DESCRIPTOR.pack_into(self._bytes, place, buffer, flags, length, address)
            words[inflight.FREE_HEAD] = free = self._get(free, inflight.PACKED_NEXT)
        words[inflight.OLD_FREE_HEAD] = free
        return entry

    def descriptors(self, entry: int) -> bytes:
        """Return the descriptors of a chain that was in flight, as the ring had them, available again."""
        chain = bytearray()
        for link in self._list(entry, self._get(entry, inflight.PACKED_NUM)):
            place = self._place(link) + inflight.PACKED_DESCRIPTOR
            buffer, flags, length, address = _DESCRIPTOR.unpack_from(self._bytes, place)
            flags = flags & ~packed.USED | packed.AVAIL
            chain += _RING_DESCRIPTOR.pack(address, length, buffer, flags)
        return bytes(chain)

    def forget(self, entry: int) -> None:
        """Note that the chain taken last was put back."""
        self._free(entry)
        # Only now is it in the free list, whose entries are not in flight whatever they say.
        self._words[inflight.OLD_FREE_HEAD] = self._words[inflight.FREE_HEAD]
        self._bytes[self._place(entry)] = 0

    def finish(self, done: Done, slot: int, wrap: bool) -> None:
        """Note which chains are about to be given back; the next one then goes to (`slot`, `wrap`)."""
        for element, _ in done:
            self._free(element.entry)
        self._store_position((slot, wrap), self._position()[1])

    def published(self, done: Done) -> None:
        """Note that the driver can see them."""
        for element, _ in done:
            self._bytes[self._place(element.entry)] = 0
        self._accept()

    def _free(self, entry: int) -> None:
        last = self._get(entry, inflight.PACKED_LAST)
        self._set(last, inflight.PACKED_NEXT, self._words[inflight.FREE_HEAD])
        self._words[inflight.FREE_HEAD] = entry

    def _settle(self, ring_flags: Words) -> tuple[int, bool]:
        """Complete the last batch if the driver can see it, or take it back. Returns the used place."""
        new, old = self._position()
        if new != old:
            slot, wrap = old
            if slot >= self._size:
                raise BrokenRingError(f"the in-flight buffer gives descriptor {slot} of {self._size} back")
            used = bool(ring_flags[slot * 8 + packed.DESCRIPTOR_FLAGS] & packed.USED)
            if used == wrap:
                self._accept()
                return new
        self._words[inflight.FREE_HEAD] = self._words[inflight.OLD_FREE_HEAD]
        self._store_position(old, old)
        return old

    def _accept(self) -> None:
        new = self._position()[0]
        self._words[inflight.OLD_FREE_HEAD] = self._words[inflight.FREE_HEAD]
        self._store_position(new, new)

    def _position(self) -> tuple[tuple[int, bool], tuple[int, bool]]:
        word = _LONG.pack(self._longs[inflight.PACKED_POSITION])
        slot, old_slot, wrap, old_wrap = _POSITION.unpack(word)
        return (slot, bool(wrap)), (old_slot, bool(old_wrap))

    def _store_position(self, new: tuple[int, bool], old: tuple[int, bool]) -> None:
        word = _POSITION.pack(new[0], old[0], new[1], old[1])
        self._longs[inflight.PACKED_POSITION] = _LONG.unpack(word)[0]

    def _list(self, entry: int, count: int) -> Iterator[int]:
        """Follow a list of entries for at most `count` of them."""
        for _ in range(count):
            if entry >= self._size:
                return
            yield entry
            entry = self._get(entry, inflight.PACKED_NEXT)

    def _counter_of(self, entry: int) -> int:
        counter: int = self._longs[self._place(entry) // 8 + inflight.PACKED_COUNTER]
        return counter

    def _get(self, entry: int, field: int) -> int:
        value: int = self._words[self._place(entry) // 2 + field]
        return value

    def _set(self, entry: int, field: int, value: int) -> None:
        self._words[self._place(entry) // 2 + field] = value

    def _place(self, entry: int) -> int:
        if entry >= self._size:
            raise BrokenRingError(f"the in-flight buffer refers to entry {entry} of {self._size}")
        return inflight.PACKED_HEADER_SIZE + inflight.PACKED_ENTRY_SIZE * entry
