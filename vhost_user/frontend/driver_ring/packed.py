"""The driver's side of a packed virtqueue (virtio 1.3, section 2.8)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.virtio import packed
from protocol.virtio.packed import EventFlags
from protocol.virtio.split import DescriptorFlag
from protocol.words import plural
from vhost_user.frontend.driver_ring.driver_ring import (
    Buffer,
    DriverRing,
    Pending,
    RingFullError,
    Table,
    Used,
    described,
)
from vhost_user.memory.atomics import fence
from vhost_user.ring.words import words

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTOR = struct.Struct(packed.DESCRIPTOR_FORMAT)


class PackedDriver(DriverRing):
    """A `DriverRing` of the packed kind."""

    def __init__(
        self, size: int, features: int, table: memoryview, driver_area: memoryview, device_area: memoryview
    ) -> None:
        """The views have 16 bytes a descriptor, and 4 bytes each."""
        super().__init__(size, features)
        for part in (table, driver_area, device_area):
            part[:] = bytes(len(part))
        self._table = table
        self._flags = words(table, "H")
        self._used = words(table, "I")
        self._driver_event = words(driver_area, "I")
        self._device_event = words(device_area, "I")
        self._ids = list(reversed(range(size)))
        self._free = size
        self._next_avail, self._avail_wrap = 0, True
        self._next_used, self._used_wrap = 0, True
        self._first_flags: tuple[int, int] | None = None
        """Where the first chain that is not published begins, and the flags that publish it."""
        self._added = 0

    @property
    def free(self) -> int:
        """Descriptors that are free."""
        return self._free

    def add(
        self,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        token: object = None,
        *,
        table: Table | None = None,
    ) -> None:
        """Write a chain into the ring, or into `table` (INDIRECT_DESC); the device sees it with `publish()`.

        Raises RingFullError, and ValueError for a chain without buffers or a table too small.
        """
        rows = described(readable, writable)
        if table is not None:
            rows = [_write_table(table, rows)]
        if len(rows) > self._free:
            raise RingFullError(f"{len(rows)} descriptors are needed, {self._free} are free")
        buffer_id = self._ids.pop()
        for number, (address, length, flags) in enumerate(rows):
            if number + 1 < len(rows):
                flags |= DescriptorFlag.NEXT  # noqa: PLW2901 -- the flags of this descriptor
            self._write(address, length, buffer_id, flags)
        self._free -= len(rows)
        self._added += len(rows)
        room = sum(buffer.length for buffer in writable)
        self._pending[buffer_id] = Pending(token, buffer_id, room, list(range(len(rows))))

    def publish(self) -> bool:
        """Let the device see what was added. Returns whether it wants a kick."""
        if self._first_flags is None:
            return False
        place, flags = self._first_flags
        self._first_flags = None
        fence()
        self._flags[place] = flags
        fence()
        added, self._added = self._added, 0
        event = self._device_event[0]
        return packed.needs_packed_event(event, self._next_avail, self._avail_wrap, added, self.size)

    def used(self) -> list[Used]:
        """Return what the device has given back since the last time, in its order."""
        found: list[Used] = []
        while self._is_used():
            fence()
            place = self._next_used * 4
            buffer_id = self._used[place + packed.DESCRIPTOR_ID_AND_FLAGS] & 0xFFFF
            written = self._used[place + packed.DESCRIPTOR_LENGTH]
            for pending, length in self._take_back(buffer_id, written):
                self._ids.append(pending.head)
                self._free += len(pending.slots)
                self._next_used += len(pending.slots)
                if self._next_used >= self.size:
                    self._next_used -= self.size
                    self._used_wrap = not self._used_wrap
                found.append(Used(pending.token, length))
        return found

    def want_calls(self, on: bool, *, after: int = 0) -> bool:
        """Ask the device for calls or ask it to leave them; True: something was used meanwhile."""
        flags, slot, wrap = EventFlags.DISABLE, self._next_used + after, self._used_wrap
        if on:
            flags = EventFlags.DESCRIPTOR if self._event_index else EventFlags.ENABLE
        if slot >= self.size:
            slot, wrap = slot - self.size, not wrap
        self._driver_event[0] = packed.event_word(packed.place(slot, wrap), flags)
        fence()
        return on and self._is_used()

    @property
    def base(self) -> int:
        """What SET_VRING_BASE tells a back-end that is to begin with the first chain not taken back."""
        place = packed.place(self._next_used, self._used_wrap)
        return place | place << 16

    def notification_data(self, queue: int) -> int:
        """Return what a driver writes to notify the device, with NOTIFICATION_DATA (section 2.9)."""
        return queue | packed.place(self._next_avail, self._avail_wrap) << 16

    def _is_used(self) -> bool:
        flags = self._flags[self._next_used * 8 + packed.DESCRIPTOR_FLAGS]
        return flags & (packed.AVAIL | packed.USED) == packed.used_flags(self._used_wrap)

    def _write(self, address: int, length: int, buffer_id: int, flags: int) -> None:
        flags |= packed.available_flags(self._avail_wrap)
        if self._first_flags is None:
            # The device looks at the others once it has seen this one, which stays as the last lap left it.
            self._first_flags = (self._next_avail * 8 + packed.DESCRIPTOR_FLAGS, flags)
            flags = packed.used_flags(not self._avail_wrap)
        place = self._next_avail * packed.DESCRIPTOR_SIZE
        _DESCRIPTOR.pack_into(self._table, place, address, length, buffer_id, flags)
        self._next_avail += 1
        if self._next_avail == self.size:
            self._next_avail, self._avail_wrap = 0, not self._avail_wrap


def _write_table(table: Table, rows: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Write an indirect table, and return the (address, length, flags) of the descriptor for it."""
    size = packed.DESCRIPTOR_SIZE * len(rows)
    if len(table.view) < size:
        raise ValueError(
            f"a table of {plural(len(table.view), 'byte')} is too small for {plural(len(rows), 'descriptor')}"
        )
    for number, (address, length, flags) in enumerate(rows):
        _DESCRIPTOR.pack_into(table.view, packed.DESCRIPTOR_SIZE * number, address, length, 0, flags)
    return table.address, size, int(DescriptorFlag.INDIRECT)
