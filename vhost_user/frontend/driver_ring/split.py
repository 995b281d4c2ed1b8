"""The driver's side of a split virtqueue (virtio 1.3, section 2.7)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from protocol.virtio import split
from protocol.virtio.features import Feature
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


class SplitDriver(DriverRing):
    """A `DriverRing` of the split kind."""

    def __init__(
        self,
        size: int,
        features: int,
        table: memoryview,
        avail: memoryview,
        used: memoryview,
        *,
        big_endian: bool = False,
    ) -> None:
        """`size` is a power of two; the views have the bytes that `protocol.virtio.split` says."""
        super().__init__(size, features)
        swapped = big_endian and not features & Feature.VERSION_1
        self._descriptor = struct.Struct((">" if swapped else "<") + split.DESCRIPTOR_FORMAT)
        for part in (table, avail, used):
            part[:] = bytes(len(part))
        self._table = table
        self._avail = words(avail, "H", big_endian=bool(swapped))
        self._used = words(used, "H", big_endian=bool(swapped))
        self._elements = words(used, "I", big_endian=bool(swapped))
        self._free = list(reversed(range(size)))
        self._next_avail = 0
        self._published = 0
        self._next_used = 0

    @property
    def free(self) -> int:
        """Descriptors that are free."""
        return len(self._free)

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
            self._write(table.view, range(len(rows)), rows)
            rows = [(table.address, split.table_bytes(len(rows)), int(DescriptorFlag.INDIRECT))]
        if len(rows) > len(self._free):
            raise RingFullError(f"{len(rows)} descriptors are needed, {len(self._free)} are free")
        slots = [self._free.pop() for _ in rows]
        self._write(self._table, slots, rows)
        room = sum(buffer.length for buffer in writable)
        self._pending[slots[0]] = Pending(token, slots[0], room, slots)
        self._avail[split.AVAIL_RING + self._next_avail % self.size] = slots[0]
        self._next_avail = self._next_avail + 1 & 0xFFFF

    def publish(self) -> bool:
        """Let the device see what was added. Returns whether it wants a kick."""
        fence()
        old, self._published = self._published, self._next_avail
        self._avail[split.AVAIL_INDEX] = self._next_avail
        fence()
        if old == self._next_avail:
            return False
        if self._event_index:
            return split.needs_event(self._used[split.avail_event(self.size)], self._next_avail, old)
        return not self._used[split.USED_FLAGS] & split.USED_NO_NOTIFY

    def used(self) -> list[Used]:
        """Return what the device has given back since the last time, in its order."""
        found: list[Used] = []
        end = self._used[split.USED_INDEX]
        fence()
        if end - self._next_used & 0xFFFF > self.size:
            raise RuntimeError(f"the used index jumped from {self._next_used} to {end}")
        while self._next_used != end:
            place = split.USED_RING + self._next_used % self.size * 2
            for pending, written in self._take_back(self._elements[place], self._elements[place + 1]):
                self._free.extend(reversed(pending.slots))
                self._next_used = self._next_used + 1 & 0xFFFF
                found.append(Used(pending.token, written))
        return found

    def want_calls(self, on: bool, *, after: int = 0) -> bool:
        """Ask the device for calls or ask it to leave them; True: something was used meanwhile."""
        if not self._event_index:
            self._avail[split.AVAIL_FLAGS] = 0 if on else split.AVAIL_NO_INTERRUPT
        elif on:
            self._avail[split.used_event(self.size)] = self._next_used + after & 0xFFFF
        fence()
        return on and self._used[split.USED_INDEX] - self._next_used & 0xFFFF > after * self._event_index

    @property
    def base(self) -> int:
        """What SET_VRING_BASE tells a back-end that is to begin with the first chain not taken back."""
        return self._next_used

    def notification_data(self, queue: int) -> int:
        """Return what a driver writes to notify the device, with NOTIFICATION_DATA (section 2.9)."""
        return queue | self._next_avail << 16

    def _write(self, table: memoryview, slots: Sequence[int], rows: Sequence[tuple[int, int, int]]) -> None:
        if len(table) < split.table_bytes(len(rows)):
            raise ValueError(
                f"a table of {plural(len(table), 'byte')} is too small for {plural(len(rows), 'descriptor')}"
            )
        for number, (address, length, flags) in enumerate(rows):
            more = number + 1 < len(rows)
            self._descriptor.pack_into(
                table,
                split.table_bytes(slots[number]),
                address,
                length,
                flags | (DescriptorFlag.NEXT if more else 0),
                slots[number + 1] if more else 0,
            )
