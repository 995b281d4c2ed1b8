"""The device's side of a packed virtqueue (virtio 1.3, section 2.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.virtio import packed
from protocol.virtio.packed import EventFlags
from protocol.virtio.split import DescriptorFlag
from vhost_user.memory import TOTAL_STORE_ORDER, BadAddressError, IotlbMissError, fence
from vhost_user.ring import packed_place
from vhost_user.ring.chain import Chain
from vhost_user.ring.inflight_packed import PackedInflight
from vhost_user.ring.packed_place import Place
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
    from collections.abc import Callable, Sequence

    from vhost_user.memory import GuestMemory
    from vhost_user.ring.ring import RingConfig

_NEXT = int(DescriptorFlag.NEXT)
_WRITE = int(DescriptorFlag.WRITE)
_INDIRECT = int(DescriptorFlag.INDIRECT)
_WRITE_OR_INDIRECT = _WRITE | _INDIRECT
_OWNER = packed.AVAIL | packed.USED


# How it works: driver and device share one ring of descriptors, and the flags of each say whose it is.
# The device reads the flags first, and the rest of the descriptor only once they are its own. It gives a
# chain back by overwriting the descriptor at its used place: the length first, then id and flags in one
# store, and of a batch the first chain's last of all, as the driver looks at that one first. Available and
# used place are the device's alone, and not in shared memory: after a crash they come from the in-flight
# buffer, from the front-end, or, where neither knows them, from the flags of the ring (packed_place.py).
# Chains that a process before us took are walked in the copy that the in-flight buffer has of them, as
# their places in the ring may be overwritten already.


class _Cursor:
    """Where chains are taken from: the ring, or a copy of one chain."""

    __slots__ = ("flags", "owner", "slot", "table")

    def __init__(self, table: memoryview, slot: int, wrap: bool) -> None:
        self.move(table)
        self.slot = slot
        self.owner = packed.available_flags(wrap)
        """AVAIL and USED as they are in an available descriptor."""

    def move(self, table: memoryview) -> None:
        """Use another view of the descriptors."""
        self.table = table
        self.flags = words(table, "H")

    def back(self, slots: int, size: int) -> None:
        """Go back by `slots` descriptors in a ring of `size`."""
        self.slot -= slots
        if self.slot < 0:
            self.slot += size
            self.owner ^= _OWNER

    @property
    def wrap(self) -> bool:
        """The driver's wrap counter."""
        return self.owner == packed.AVAIL


class PackedRing(Ring):
    """A `Ring` that starts at `base`: the available place in bits 0 to 15, the used one in 16 to 31.

    A place is a descriptor's index (15 bits) and a wrap counter. With `inflight`, this queue's part
    of the in-flight buffer, both come from there if it was used before, and what a process before us
    had taken and not given back is popped again, first. Otherwise, where the ring's descriptors show that
    it cannot be at `base`, it starts behind the last chain that was given back, if they show that too;
    with `doubted`, `base` is also what a front-end says that does not know.
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
        size = config.size
        if not 0 < size <= packed.MAX_SIZE:
            raise BrokenRingError(f"a packed ring of {size}: 1 to {packed.MAX_SIZE} are possible")
        base = packed.whole_base(base)
        avail, avail_wrap = packed.split_place(base)
        self._next_used, self._used_wrap = packed.split_place(base >> 16)
        if avail >= size or self._next_used >= size:
            raise BrokenRingError(f"a packed ring of {size} cannot start at {avail} and {self._next_used}")
        super().__init__(memory, config)
        self._unpack = struct.Struct(packed.DESCRIPTOR_FORMAT).unpack_from
        self._avail = _Cursor(NOWHERE[2], avail, avail_wrap)
        self._map()
        self._inflight = PackedInflight(inflight, size) if inflight is not None else None
        self._note = self._inflight.fetch if self._inflight is not None else None
        self._resubmit: list[int] = []
        settled = packed_place.settle(
            *(self._avail.flags, size, Place(avail, avail_wrap), self._used_place), doubted=doubted
        )
        if settled is not None:
            self._avail = _Cursor(self._avail.table, *settled[0])
            self._next_used, self._used_wrap = settled[1]
            self.given_base = base if base != self.base else None
        if self._inflight is not None and self._recover(self._inflight):
            self.given_base = None
        elif settled is None:
            raise BrokenRingError(
                f"it cannot go on at {base:#x}, as the front-end has it, and does not show how far a back-end"
                " before this one had come; reboot the guest, and where back-ends are to be started again,"
                " withhold the feature (--without RING_PACKED)"
            )

    @property
    def base(self) -> int:
        """The places where the next chain is taken and the next one is given back."""
        avail = packed.place(self._avail.slot, self._avail.wrap)
        return avail | packed.place(self._next_used, self._used_wrap) << 16

    def pop(self, limit: int) -> list[Chain]:
        """Take at most `limit` chains that the driver made available; resubmitted ones come first."""
        if self._generation != self._memory.generation:
            self._map()
        if self._resubmit and self._inflight is not None:
            batch = self._pop_again(self._inflight, self._resubmit[0])
        else:
            batch = self._walk(self._avail, limit, self._size - self._in_use, self._note)
            for chain in batch:
                self._in_use += chain.slots
            self._fresh += len(batch)
        self._took(batch)
        return batch

    def push(self, done: Sequence[Chain]) -> bool:
        """Give completed chains back, and drop their buffers. Returns whether the driver wants a call."""
        done = self._prepare(done)
        if not done:
            return False
        used = self._used
        size = self._size
        first = done[0]
        first_word = count = 0
        slot = self._next_used
        flags = packed.used_flags(self._used_wrap)
        for chain in done:
            written = chain.written
            used[slot * 4 + packed.DESCRIPTOR_LENGTH] = written
            word = chain.head | (flags | _WRITE if written else flags) << 16
            if chain is first:
                first_word = word
            else:
                used[slot * 4 + packed.DESCRIPTOR_ID_AND_FLAGS] = word
            count += chain.slots
            slot += chain.slots
            if slot >= size:
                slot -= size
                flags ^= _OWNER
        if self._inflight is not None:
            self._inflight.finish(done, Place(slot, bool(flags)))
        if not TOTAL_STORE_ORDER:
            fence()
        # The driver looks at the first of the batch, and at the others once it has seen that.
        used[self._next_used * 4 + packed.DESCRIPTOR_ID_AND_FLAGS] = first_word
        if self._inflight is not None:
            self._inflight.published(done)
        self._next_used = slot
        self._used_wrap = bool(flags)
        self._in_use -= count
        if self._memory.log is not None:
            self._log_ring()
        fence()
        return self._wants_call(count)

    def want_kicks(self, on: bool) -> bool:
        """Ask the driver for kicks or ask it to leave them; True: chains became available meanwhile."""
        if self._generation != self._memory.generation:
            self._map()
        avail = self._avail
        flags = EventFlags.DISABLE
        if on:
            flags = EventFlags.DESCRIPTOR if self._event_index else EventFlags.ENABLE
        self._device_event[0] = packed.event_word(packed.place(avail.slot, avail.wrap), flags)
        if self._memory.log is not None:
            self._log_ring()
        if not on:
            return False
        fence()
        return bool(self._resubmit) or avail.flags[avail.slot << 3 | 7] & _OWNER == avail.owner

    def all_zero(self) -> bool:
        """Tell whether no bit of the driver's part of the ring is set."""
        return not any(self._avail.table)

    def _undo(self, fresh: Sequence[Chain], again: Sequence[Chain]) -> None:
        for chain in reversed(fresh):
            self._avail.back(chain.slots, self._size)
            self._in_use -= chain.slots
            if self._inflight is not None:
                self._inflight.forget(chain.entry)
        self._resubmit[:0] = [chain.entry for chain in again]
        self._in_use -= sum(chain.slots for chain in again)

    @property
    def _used_place(self) -> Place:
        return Place(self._next_used, self._used_wrap)

    def _recover(self, inflight: PackedInflight) -> bool:
        """Go on as the buffer says; False: it knows nothing of this ring."""
        found = inflight.recover(self._avail.flags, self._used_place)
        if found is None:
            return False
        self._resubmit = found.entries
        self._next_used, self._used_wrap = slot, wrap = found.used
        for _ in range(found.descriptors):
            # A batch that was never published may have left used descriptors after its first one.
            self._avail.flags[slot << 3 | packed.DESCRIPTOR_FLAGS] = packed.available_flags(wrap)
            slot += 1
            if slot == self._size:
                slot, wrap = 0, not wrap
        self._avail = _Cursor(self._avail.table, slot, wrap)
        return True

    def _find_parts(self) -> None:
        table = self._memory.ring_part(self._config.descriptors, packed.DESCRIPTOR_SIZE * self._size)
        driver_area = self._memory.ring_part(self._config.avail, packed.EVENT_SIZE)
        device_area = self._memory.ring_part(self._config.used, packed.EVENT_SIZE)
        self._avail.move(table)
        self._used = words(table, "I")
        self._driver_event = words(driver_area, "I")
        self._device_event = words(device_area, "I")

    def _lose_parts(self) -> None:
        self._avail.move(NOWHERE[2])
        self._used = self._driver_event = self._device_event = words(NOWHERE[2], "I")
        self._inflight = self._note = None

    def _pop_again(self, inflight: PackedInflight, entry: int) -> list[Chain]:
        """Take the oldest chain that was in flight when the process before us died."""
        cursor = _Cursor(memoryview(inflight.descriptors(entry)), 0, wrap=True)
        batch = self._walk(cursor, 1, self._size, None)
        for chain in batch:
            chain.entry = entry
            self._in_use += chain.slots
            del self._resubmit[0]
        return batch

    def _walk(  # noqa: C901, PLR0912, PLR0915 -- one loop without calls: it runs for every request
        self, cursor: _Cursor, limit: int, room: int, note: Callable[[memoryview, int, int], int] | None
    ) -> list[Chain]:
        """Return available chains from `cursor` on, up to the first that is not as it must be."""
        batch: list[Chain] = []
        unpack = self._unpack
        ring_table, ring_flags = cursor.table, cursor.flags
        ring_end = len(ring_table)
        slot, owner = cursor.slot, cursor.owner
        most = self._most_indirect
        read_start, read_size, read_view = self._readable
        write_start, write_size, write_view = self._writable
        try:
            while limit and ring_flags[slot << 3 | 7] & _OWNER == owner:
                if not TOTAL_STORE_ORDER:
                    fence()
                if not room:
                    raise BrokenRingError("a descriptor is available while all of them are in use")
                limit -= 1
                table: bytes | memoryview = ring_table
                place = slot << 4
                after = table_end = slots = 0
                chain = Chain()
                readable: list[memoryview] = []
                writable: list[memoryview] = []
                chain.readable_buffers = readable
                chain.writable_buffers = writable
                readable_length = writable_length = 0
                while True:
                    address, length, number, flags = unpack(table, place)
                    place += 16
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
                        if table_end:
                            raise BrokenRingError("an indirect table within an indirect table")
                        if slots or flags & _NEXT:
                            raise BrokenRingError("an indirect descriptor in a list with others")
                        offset = address - read_start
                        end = offset + length
                        if 0 <= offset < end <= read_size and length <= most and not length & 15:
                            table = read_view[offset:end]
                        else:
                            table = indirect_table(self._memory, address, length, most)
                        chain.head = number
                        slots = 1
                        after, place, table_end = place, 0, length
                        continue
                    if table_end:
                        if place < table_end:
                            continue
                        place = after
                        break
                    slots += 1
                    if not flags & _NEXT:
                        chain.head = number
                        break
                    if slots == room:
                        raise BrokenRingError("a chain has more descriptors than are free in the ring")
                    if place == ring_end:
                        place = 0
                if readable_length + writable_length > MAX_CHAIN_BYTES:
                    raise BrokenRingError("a chain of more than 4 GiB")
                chain.readable_length, chain.writable_length = readable_length, writable_length
                chain.slots = slots
                if note is not None:
                    chain.entry = note(ring_table, slot, slots)
                batch.append(chain)
                room -= slots
                after = slot
                slot = 0 if place == ring_end else place >> 4
                if slot <= after:
                    owner ^= _OWNER
        except (BrokenRingError, IotlbMissError):
            if not batch:
                raise
        except BadAddressError as error:
            if not batch:
                raise BrokenRingError(f"a descriptor is outside memory: {error}") from error
        cursor.slot, cursor.owner = slot, owner
        return batch

    def _wants_call(self, count: int) -> bool:
        if not self._pushed_before:
            self._pushed_before = True
            return True
        event = self._driver_event[0]
        return packed.needs_packed_event(event, self._next_used, self._used_wrap, count, self._size)

    def _log_ring(self) -> None:
        # The log address is the device area's, but used descriptors are in the descriptor ring.
        self._log_used(packed.EVENT_SIZE)
        if self.log_address is not None:
            self._log_views([self._avail.table])
