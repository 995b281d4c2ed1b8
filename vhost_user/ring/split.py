"""The device's side of a split virtqueue (virtio 1.3, section 2.7)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.virtio import split
from protocol.virtio.features import Feature
from protocol.virtio.split import DescriptorFlag
from vhost_user.memory import TOTAL_STORE_ORDER, BadAddressError, IotlbMissError, fence
from vhost_user.ring.chain import Chain
from vhost_user.ring.inflight_split import SplitInflight
from vhost_user.ring.ring import (
    MAX_CHAIN_BYTES,
    NOWHERE,
    BrokenRingError,
    Ring,
    buffers,
    indirect_table,
)
from vhost_user.ring.words import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vhost_user.memory import GuestMemory
    from vhost_user.ring.ring import RingConfig
    from vhost_user.ring.words import Words

_NEXT = int(DescriptorFlag.NEXT)
_INDIRECT = int(DescriptorFlag.INDIRECT)
_WRITE_OR_INDIRECT = int(DescriptorFlag.WRITE | DescriptorFlag.INDIRECT)


# How it works: the driver owns the descriptor table and the available ring, the device the used ring. All
# stay the driver's memory, which it may change at any time: each word is read once, into a local name, and
# checked there. push() stores elements, then the in-flight notes, then the used index, which is the
# publication; a fence separates that from the look at whether the driver wants a call, or both would sleep.
# A crash before the index leaves a chain in flight, after it a chain given back: there is no third state.
# Views of the parts are found again where `generation` differs, before anything is read through them.


class SplitRing(Ring):
    """A `Ring` that starts at `base`, the free-running index of the available ring.

    The used index comes from the ring itself. With `inflight`, this queue's part of the in-flight
    buffer, what a process before us had taken and not given back is popped again, first. Otherwise,
    where `base` is not between the used and the available index, or is `doubted`, it starts at the used one.
    """

    def __init__(
        self,
        memory: GuestMemory,
        config: RingConfig,
        base: int,
        inflight: memoryview | None = None,
        *,
        doubted: bool = False,
    ) -> None:
        """Raises BrokenRingError, and IotlbMissError where the front-end must be asked first."""
        if not split.is_power_of_two(config.size) or config.size > split.MAX_SIZE:
            raise BrokenRingError(f"a split ring of {config.size}: a power of two up to 32768 is possible")
        super().__init__(memory, config)
        self._mask = config.size - 1
        self._big_endian = config.big_endian and not config.has(Feature.VERSION_1)
        self._unpack = struct.Struct(("<", ">")[self._big_endian] + split.DESCRIPTOR_FORMAT).unpack_from
        self._notify_on_empty = config.has(Feature.NOTIFY_ON_EMPTY)
        self._used_event = split.used_event(config.size)
        self._map()
        self._next_avail = base & 0xFFFF
        self._next_used = self._used[split.USED_INDEX]
        self._inflight = SplitInflight(inflight, config.size) if inflight is not None else None
        self._note = self._inflight.fetch if self._inflight is not None else None
        self._resubmit: list[int] = []
        if self._inflight is None or not self._recover(self._inflight):
            self._check_base(doubted)

    @property
    def base(self) -> int:
        """The index of the available ring where the next chain is taken, free-running."""
        return self._next_avail

    def pop(self, limit: int) -> list[Chain]:
        """Take at most `limit` chains that the driver made available; resubmitted ones come first."""
        if self._generation != self._memory.generation:
            self._map()
        if self._resubmit:
            batch = self._walk(self._resubmit, range(min(len(self._resubmit), limit)), None)
            del self._resubmit[: len(batch)]
        else:
            last = self._next_avail
            count = self._avail[split.AVAIL_INDEX] - last & 0xFFFF
            if not count:
                return []
            if count > self._size - self._in_use:
                raise BrokenRingError(
                    f"the available index is {count} beyond {last}, with {self._in_use} of {self._size}"
                    " descriptors in use"
                )
            if not TOTAL_STORE_ORDER:
                fence()
            count = min(count, limit)
            first = last & self._mask
            if first + count <= self._size:
                places: Iterable[int] = range(split.AVAIL_RING + first, split.AVAIL_RING + first + count)
            else:
                places = (split.AVAIL_RING + (entry & self._mask) for entry in range(first, first + count))
            batch = self._walk(self._avail, places, self._note)
            self._next_avail = last + len(batch) & 0xFFFF
            self._fresh += len(batch)
        self._in_use += len(batch)
        self._took(batch)
        return batch

    def push(self, done: Sequence[Chain]) -> bool:
        """Give completed chains back, and drop their buffers. Returns whether the driver wants a call."""
        done = self._prepare(done)
        if not done:
            return False
        elements = self._elements
        mask = self._mask
        index = self._next_used
        for chain in done:
            place = (index & mask) << 1
            elements[place + 1] = chain.head
            elements[place + 2] = chain.written
            index += 1
        index &= 0xFFFF
        if self._inflight is not None:
            self._inflight.finish(done)
        if not TOTAL_STORE_ORDER:
            fence()
        self._used[split.USED_INDEX] = self._next_used = index
        if self._inflight is not None:
            self._inflight.published(done, index)
        self._in_use -= len(done)
        if self._memory.log is not None:
            self._log_used(split.used_bytes(self._size, event_index=self._event_index))
        fence()
        return self._wants_call(index, len(done))

    def want_kicks(self, on: bool) -> bool:
        """Ask the driver for kicks or ask it to leave them; True: chains became available meanwhile."""
        if self._generation != self._memory.generation:
            self._map()
        if not self._event_index:
            self._used[split.USED_FLAGS] = 0 if on else split.USED_NO_NOTIFY
        elif on:
            self._used[split.avail_event(self._size)] = self._next_avail
        if self._memory.log is not None:
            self._log_used(split.used_bytes(self._size, event_index=self._event_index))
        if not on:
            return False
        fence()
        return bool(self._resubmit) or self._avail[split.AVAIL_INDEX] != self._next_avail

    def all_zero(self) -> bool:
        """Tell whether no bit of the driver's part of the ring is set."""
        return not any(self._table) and not any(self._avail[place] for place in range(2 + self._size))

    def _undo(self, fresh: Sequence[Chain], again: Sequence[Chain]) -> None:
        for chain in reversed(fresh):
            self._next_avail = self._next_avail - 1 & 0xFFFF
            if self._inflight is not None:
                self._inflight.forget(chain.head)
        self._resubmit[:0] = [chain.head for chain in again]
        self._in_use -= len(fresh) + len(again)

    def _recover(self, inflight: SplitInflight) -> bool:
        """Go on as the buffer says; False: it knows nothing of this ring."""
        available = self._avail[split.AVAIL_INDEX] - self._next_used & 0xFFFF
        heads = inflight.recover(self._next_used, available)
        if heads is None:
            return False
        # Every chain taken so far is either given back or in flight; the front-end of a process
        # that was killed cannot know how many were taken.
        self._resubmit = heads
        self._next_avail = self._next_used + len(heads) & 0xFFFF
        return True

    def _check_base(self, doubted: bool) -> None:
        """Go on at the used index where the front-end does not know how far a back-end before us had come."""
        available = self._avail[split.AVAIL_INDEX] - self._next_used & 0xFFFF
        taken = self._next_avail - self._next_used & 0xFFFF
        if taken > (0 if doubted else available) and available <= self._size:
            self.given_base = self._next_avail
            self._next_avail = self._next_used

    def _find_parts(self) -> None:
        config, size, event = self._config, self._size, self._event_index
        table = self._memory.ring_part(config.descriptors, split.table_bytes(size))
        avail = self._memory.ring_part(config.avail, split.avail_bytes(size, event_index=event))
        used = self._memory.ring_part(config.used, split.used_bytes(size, event_index=event))
        self._table = table
        self._avail = words(avail, "H", big_endian=self._big_endian)
        self._used = words(used, "H", big_endian=self._big_endian)
        self._elements = words(used, "I", big_endian=self._big_endian)

    def _lose_parts(self) -> None:
        self._table = NOWHERE[2]
        self._avail = self._used = self._elements = words(self._table, "H")
        self._inflight = self._note = None

    def _walk(  # noqa: C901, PLR0912, PLR0915 -- one loop without calls: it runs for every request
        self,
        heads: Words,
        places: Iterable[int],
        note: Callable[[int], None] | None,
    ) -> list[Chain]:
        """Return the chains whose heads are at `places`, up to the first that is not as it must be."""
        batch: list[Chain] = []
        unpack = self._unpack
        # Runs of guest memory that held the last buffers: most descriptors need no look at the table.
        ring_table = self._table
        most = self._most_indirect
        read_start, read_size, read_view = self._readable
        write_start, write_size, write_view = self._writable
        index = 0
        try:
            for place in places:
                index = head = heads[place]
                table: bytes | memoryview = ring_table
                left = self._size
                chain = Chain()
                chain.head = head
                readable: list[memoryview] = []
                writable: list[memoryview] = []
                chain.readable_buffers = readable
                chain.writable_buffers = writable
                readable_length = writable_length = 0
                while True:
                    address, length, flags, following = unpack(table, index << 4)
                    if not flags & _WRITE_OR_INDIRECT:
                        if writable:
                            if not self._config.only_read:
                                raise BrokenRingError("a readable descriptor follows a writable one")
                            readable += [view.toreadonly() for view in writable]
                            writable.clear()
                            readable_length, writable_length = readable_length + writable_length, 0
                        offset = address - read_start
                        end = offset + length
                        if 0 <= offset < end <= read_size:
                            readable.append(read_view[offset:end])
                        else:
                            self._readable, views = buffers(self._memory, address, length, write=False)
                            read_start, read_size, read_view = self._readable
                            readable += views
                        readable_length += length
                    elif not flags & _INDIRECT:
                        offset = address - write_start
                        end = offset + length
                        if 0 <= offset < end <= write_size:
                            writable.append(write_view[offset:end])
                        else:
                            self._writable, views = buffers(self._memory, address, length, write=True)
                            write_start, write_size, write_view = self._writable
                            writable += views
                        writable_length += length
                    else:
                        if table is not ring_table:
                            raise BrokenRingError("an indirect table within an indirect table")
                        if flags & _NEXT:
                            raise BrokenRingError("an indirect descriptor that has a next one")
                        offset = address - read_start
                        end = offset + length
                        if 0 <= offset < end <= read_size and length <= most and not length & 15:
                            table = read_view[offset:end]
                        else:
                            table = indirect_table(self._memory, address, length, most)
                        left = length >> 4
                        index = 0
                        continue
                    if not flags & _NEXT:
                        break
                    left -= 1
                    if not left:
                        raise BrokenRingError("a chain has more descriptors than its table: a loop")
                    index = following
                if readable_length + writable_length > MAX_CHAIN_BYTES:
                    raise BrokenRingError("a chain of more than 4 GiB")
                chain.readable_length, chain.writable_length = readable_length, writable_length
                if note is not None:
                    note(head)
                batch.append(chain)
        except (BrokenRingError, IotlbMissError):
            if not batch:
                raise
        except BadAddressError as error:
            if not batch:
                raise BrokenRingError(f"a descriptor is outside memory: {error}") from error
        except struct.error as error:
            # The table ends where its last descriptor does, so this is the check of the index.
            if not batch:
                raise BrokenRingError(f"descriptor {index} is outside its table") from error
        return batch

    def _wants_call(self, index: int, count: int) -> bool:
        if not self._pushed_before:
            self._pushed_before = True
            return True
        if self._event_index:
            # split.needs_event(), without the call
            wanted = (index - self._avail[self._used_event] - 1) & 0xFFFF < count
        else:
            wanted = not self._avail[split.AVAIL_FLAGS] & split.AVAIL_NO_INTERRUPT
        if self._notify_on_empty and not wanted:
            return not self._in_use and self._avail[split.AVAIL_INDEX] == self._next_avail
        return wanted
