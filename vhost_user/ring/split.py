"""The device's side of a split virtqueue (virtio 1.2, section 2.7)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.virtio import split
from protocol.virtio.features import Feature
from protocol.virtio.split import DescriptorFlag
from vhost_user.atomics import TOTAL_STORE_ORDER, fence
from vhost_user.memory import BadAddressError, IotlbMissError, Window
from vhost_user.ring.base import (
    MAX_CHAIN,
    MAX_CHAIN_BYTES,
    BrokenRingError,
    Element,
    InOrder,
    buffers,
    indirect_table,
)
from vhost_user.ring.inflight import SplitInflight
from vhost_user.ring.words import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vhost_user.memory import GuestMemory
    from vhost_user.ring.base import RingConfig

_NEXT = int(DescriptorFlag.NEXT)
_INDIRECT = int(DescriptorFlag.INDIRECT)
_WRITE_OR_INDIRECT = int(DescriptorFlag.WRITE | DescriptorFlag.INDIRECT)
_NOWHERE = Window(1, 0, memoryview(b""))
_new_element = tuple.__new__


class SplitRing:
    """A `Ring` that starts at `base`, the free-running index of the available ring.

    The used index comes from the ring itself. With `inflight`, this queue's part of the in-flight
    buffer, what a process before us had taken and not given back is popped again, first.

    Call the driver once after the start: a process before us may have died before it could.
    """

    def __init__(
        self, memory: GuestMemory, config: RingConfig, base: int, inflight: memoryview | None = None
    ) -> None:
        """Raises BrokenRingError, and IotlbMissError where the front-end must be asked first."""
        if not split.is_power_of_two(config.size) or config.size > split.MAX_SIZE:
            raise BrokenRingError(f"a split ring of {config.size}: a power of two up to 32768 is possible")
        self.log_address: int | None = None
        self._memory = memory
        self._config = config
        self._size = config.size
        self._mask = config.size - 1
        self._big_endian = config.big_endian and not config.has(Feature.VERSION_1)
        self._unpack = struct.Struct(("<", ">")[self._big_endian] + split.DESCRIPTOR_FORMAT).unpack_from
        self._event_index = config.has(Feature.EVENT_IDX)
        self._notify_on_empty = config.has(Feature.NOTIFY_ON_EMPTY)
        self._used_event = split.used_event(config.size)
        self._max_indirect = max(config.size, MAX_CHAIN) if config.has(Feature.INDIRECT_DESC) else 0
        self._in_order = InOrder() if config.has(Feature.IN_ORDER) else None
        self._map()
        self._next_avail = base & 0xFFFF
        self._next_used = self._used[split.USED_INDEX]
        self._in_use = 0
        self._pushed_before = False
        self._inflight = SplitInflight(inflight, config.size) if inflight is not None else None
        self._resubmit: list[int] = []
        if self._inflight is not None:
            self._recover(self._inflight)

    @property
    def base(self) -> int:
        """The index of the available ring where the next chain is taken, free-running."""
        return self._next_avail

    def pop(self, limit: int) -> list[Element]:
        """Take at most `limit` chains that the driver made available; resubmitted ones come first."""
        if self._generation != self._memory.generation:
            self._map()
        batch: list[Element] = []
        if self._resubmit:
            self._take(self._resubmit[:limit], batch, None)
            del self._resubmit[: len(batch)]
        else:
            count = self._available()
            if not count:
                return batch
            note = self._inflight.fetch if self._inflight is not None else None
            self._take(self._heads(min(count, limit)), batch, note)
            self._next_avail = self._next_avail + len(batch) & 0xFFFF
        self._in_use += len(batch)
        if self._in_order is not None:
            self._in_order.took(batch)
        return batch

    def push(self, done: Sequence[tuple[Element, int]]) -> bool:
        """Give chains back with the bytes written to each. Returns whether the driver wants a call."""
        if self._generation != self._memory.generation:
            self._map()
        if self._memory.log is not None:
            for element, _ in done:
                self._memory.mark_written(element.writable)
        if self._in_order is not None:
            done = self._in_order.release(done)
        if not done:
            return False
        elements = self._elements
        mask = self._mask
        index = self._next_used
        for element, written in done:
            place = (index & mask) << 1
            elements[place + 1] = element[0]
            elements[place + 2] = written
            index += 1
        index &= 0xFFFF
        inflight = self._inflight
        if inflight is not None:
            inflight.finish([element.head for element, _ in done])
        if not TOTAL_STORE_ORDER:
            fence()
        self._next_used = self._used[split.USED_INDEX] = index
        if inflight is not None:
            inflight.published([element.head for element, _ in done], index)
        self._in_use -= len(done)
        self._log_used()
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
        if not on:
            return False
        self._log_used()
        fence()
        return bool(self._resubmit) or self._avail[split.AVAIL_INDEX] != self._next_avail

    def all_zero(self) -> bool:
        """Tell whether no bit of the driver's part of the ring is set."""
        return not any(self._table) and not any(self._avail[place] for place in range(2 + self._size))

    def _recover(self, inflight: SplitInflight) -> None:
        heads = inflight.recover(self._next_used)
        if heads is not None:
            # Every chain taken so far is either given back or in flight; the front-end of a process
            # that was killed cannot know how many were taken.
            self._resubmit = heads
            self._next_avail = self._next_used + len(heads) & 0xFFFF

    def _map(self) -> None:
        """Find the ring's parts in memory as it is now."""
        config, size, event = self._config, self._size, self._event_index
        try:
            table = self._memory.ring_part(config.descriptors, split.table_bytes(size))
            avail = self._memory.ring_part(config.avail, split.avail_bytes(size, event_index=event))
            used = self._memory.ring_part(config.used, split.used_bytes(size, event_index=event))
        except IotlbMissError:
            raise
        except BadAddressError as error:
            raise BrokenRingError(f"a part of the ring is outside memory: {error}") from error
        self._table = table
        self._avail = words(avail, "H", big_endian=self._big_endian)
        self._used = words(used, "H", big_endian=self._big_endian)
        self._elements = words(used, "I", big_endian=self._big_endian)
        self._readable = self._writable = _NOWHERE
        self._generation = self._memory.generation

    def _available(self) -> int:
        """Return how many chains the driver has made available and we have not taken."""
        index = self._avail[split.AVAIL_INDEX]
        count = index - self._next_avail & 0xFFFF
        if count > self._size - self._in_use:
            raise BrokenRingError(
                f"the available index jumped from {self._next_avail} to {index}, with {self._in_use}"
                f" of {self._size} descriptors in use"
            )
        if not TOTAL_STORE_ORDER:
            fence()
        return count

    def _heads(self, count: int) -> Iterable[int]:
        first = self._next_avail & self._mask
        avail = self._avail
        if first + count <= self._size:
            first += split.AVAIL_RING
            return map(avail.__getitem__, range(first, first + count))
        return [avail[split.AVAIL_RING + (first + i & self._mask)] for i in range(count)]

    def _take(self, heads: Iterable[int], batch: list[Element], note: Callable[[int], None] | None) -> None:
        """Walk chains into the batch; what is wrong with one waits until it is the first."""
        try:
            self._walk(heads, batch, note)
        except (BrokenRingError, IotlbMissError):
            if not batch:
                raise
        except BadAddressError as error:
            if not batch:
                raise BrokenRingError(f"a descriptor is outside memory: {error}") from error

    def _walk(  # noqa: C901, PLR0912, PLR0915 -- one loop without calls: it runs for every request
        self, heads: Iterable[int], batch: list[Element], note: Callable[[int], None] | None
    ) -> None:
        unpack = self._unpack
        ring_table = self._table
        read_start, read_end, read_view = self._readable
        write_start, write_end, write_view = self._writable
        index = 0
        try:
            for head in heads:
                index = head
                table: bytes | memoryview = ring_table
                left = self._size
                readable: list[memoryview] = []
                writable: list[memoryview] = []
                readable_length = writable_length = 0
                while True:
                    address, length, flags, following = unpack(table, index << 4)
                    end = address + length
                    if not flags & _WRITE_OR_INDIRECT:
                        if writable:
                            raise BrokenRingError("a readable descriptor follows a writable one")
                        if read_start <= address < end <= read_end:
                            readable.append(read_view[address - read_start : end - read_start])
                        else:
                            window, views = buffers(self._memory, address, length, write=False)
                            read_start, read_end, read_view = window
                            readable += views
                        readable_length += length
                    elif not flags & _INDIRECT:
                        if write_start <= address < end <= write_end:
                            writable.append(write_view[address - write_start : end - write_start])
                        else:
                            window, views = buffers(self._memory, address, length, write=True)
                            write_start, write_end, write_view = window
                            writable += views
                        writable_length += length
                    else:
                        if table is not ring_table:
                            raise BrokenRingError("an indirect table within an indirect table")
                        table = self._indirect(address, length, flags)
                        left = len(table) >> 4
                        index = 0
                        continue
                    if not flags & _NEXT:
                        break
                    left -= 1
                    if not left:
                        raise BrokenRingError("a chain has more descriptors than its table: it is a loop")
                    index = following
                if readable_length + writable_length > MAX_CHAIN_BYTES:
                    raise BrokenRingError("a chain of more than 4 GiB")
                if note is not None:
                    note(head)
                batch.append(
                    _new_element(Element, (head, readable, writable, readable_length, writable_length, 1, 0))
                )
        except struct.error as error:
            # The table ends where its last descriptor does, so this is the check of the index.
            raise BrokenRingError(f"descriptor {index} is outside its table") from error
        self._readable = Window(read_start, read_end, read_view)
        self._writable = Window(write_start, write_end, write_view)

    def _indirect(self, address: int, length: int, flags: int) -> bytes | memoryview:
        if not self._max_indirect:
            raise BrokenRingError("an indirect descriptor, but INDIRECT_DESC was not negotiated")
        if flags & _NEXT:
            raise BrokenRingError("an indirect descriptor that has a next one")
        return indirect_table(self._memory, address, length, self._max_indirect)

    def _wants_call(self, index: int, count: int) -> bool:
        if not self._pushed_before:
            self._pushed_before = True
            return True
        if self._event_index:
            wanted = split.needs_event(self._avail[self._used_event], index, index - count)
        else:
            wanted = not self._avail[split.AVAIL_FLAGS] & split.AVAIL_NO_INTERRUPT
        if self._notify_on_empty and not wanted:
            return not self._in_use and self._avail[split.AVAIL_INDEX] == self._next_avail
        return wanted

    def _log_used(self) -> None:
        log = self._memory.log
        if log is not None and self.log_address is not None:
            log.mark(self.log_address, split.used_bytes(self._size, event_index=self._event_index))
