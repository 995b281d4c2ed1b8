"""A virtio-pci driver over qtest, written from the specification.

virtio 1.3, sections 2.7 and 2.8 (split and packed virtqueues), 3.1 (device initialization), 4.1
(PCI). Numbers are not taken from the product, so that both are checked against QEMU and against each
other.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import trio

from tests.qemu.virtio_structures import COMMON, DEVICE, ISR, NOTIFY, Structure, structures
from tests.rig.qemu.msix import MsiX
from tests.rig.qemu.pci import STATUS, STATUS_INTERRUPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.rig.qemu.pci import Bar, PciDevice
    from tests.rig.qemu.qemu import Machine
    from tests.rig.qemu.qtest import QTest

VENDOR = 0x1AF4
TRANSITIONAL = {1: 0x1000, 2: 0x1001, 3: 0x1003, 4: 0x1005, 5: 0x1002, 8: 0x1004, 9: 0x1009}

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
ACCESS_PLATFORM = 1 << 33
RING_PACKED = 1 << 34

NO_VECTOR = 0xFFFF

NEXT, WRITE, INDIRECT = 1, 2, 4

_AVAIL, _USED = 1 << 7, 1 << 15

Row: TypeAlias = tuple[int, int, int]
"""A descriptor: address, length, flags."""

# The common configuration structure (section 4.1.4.3): offset and size.
_DEVICE_FEATURE_SELECT = (0, 4)
_DEVICE_FEATURE = (4, 4)
_DRIVER_FEATURE_SELECT = (8, 4)
_DRIVER_FEATURE = (12, 4)
_CONFIG_VECTOR = (16, 2)
_NUM_QUEUES = (18, 2)
_STATUS = (20, 1)
_GENERATION = (21, 1)
_QUEUE_SELECT = (22, 2)
_QUEUE_SIZE = (24, 2)
_QUEUE_VECTOR = (26, 2)
_QUEUE_ENABLE = (28, 2)
_QUEUE_NOTIFY_OFF = (30, 2)
_QUEUE_DESC = 32
_QUEUE_DRIVER = 40
_QUEUE_DEVICE = 48

#: Guest RAM that is given out, and where interrupt messages go: 64 KiB for each device.
_RAM = 0x100_0000
_MESSAGES = 0x20_0000
_MESSAGES_STEP = 0x1_0000


class Ram:
    """Guest memory, given out and never taken back."""

    def __init__(self, qtest: QTest, start: int = _RAM) -> None:
        self.qtest = qtest
        self._free = start

    def allocate(self, size: int, align: int = 16) -> int:
        """Return the address of `size` bytes."""
        address = -(-self._free // align) * align
        self._free = address + size
        return address

    async def put(self, data: bytes) -> int:
        """Write `data` somewhere; return its address."""
        address = self.allocate(len(data))
        await self.qtest.write_bytes(address, data)
        return address


@dataclass(frozen=True)
class Request:
    """A chain that was submitted: its head (packed: its buffer id), and where the device writes."""

    head: int
    writable: tuple[tuple[int, int], ...]


class Queue(ABC):
    """A virtqueue in guest memory, with the driver's side of it."""

    desc: int
    driver: int
    device: int
    """Where its three parts are, by the names of the common configuration."""

    def __init__(self, device: VirtioPci, index: int, size: int, vector: int, notify: int) -> None:
        self.index = index
        self.size = size
        self.vector = vector
        self.ram = device.ram
        """Where the buffers of its requests come from."""
        self._qtest = device.qtest
        self._notify = notify

    @abstractmethod
    async def clear(self) -> None:
        """Make the ring all zeros, as a driver hands it to a device."""

    @abstractmethod
    async def _submit(self, rows: Sequence[Row]) -> int:
        """Make a chain of these descriptors available; return what names it."""

    @abstractmethod
    async def take(self) -> list[tuple[int, int]]:
        """Return (name, length) of what was used since the last time."""

    async def add(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool = False
    ) -> Request:
        """Make a chain available: buffers with these contents, then room for these numbers of bytes."""
        rows = [(await self.ram.put(data), len(data), 0) for data in readable]
        rows += [(self.ram.allocate(size), size, WRITE) for size in writable]
        written = tuple((address, size) for address, size, flags in rows if flags & WRITE)
        if indirect:
            table = await self.ram.put(self._table(rows))
            rows = [(table, 16 * len(rows), INDIRECT)]
        return Request(await self._submit(rows), written)

    @abstractmethod
    def _table(self, rows: Sequence[Row]) -> bytes:
        """Return an indirect table."""

    async def kick(self) -> None:
        """Notify the device, whether it wants that or not."""
        await self._qtest.write(self._notify, self.index, 2)

    async def wait(self, *, seconds: float = 60) -> list[tuple[int, int]]:
        """Wait until something is used, without interrupts; return it as `take()` does."""
        with trio.fail_after(seconds):
            while not (taken := await self.take()):
                pass
        return taken

    async def request(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool = False
    ) -> list[bytes]:
        """Submit a chain, kick, wait for it; return what the device wrote into each buffer."""
        request = await self.add(readable, writable, indirect=indirect)
        await self.kick()
        ((head, length),) = await self.wait()
        assert head == request.head
        return await self.written(request, length)

    async def written(self, request: Request, length: int) -> list[bytes]:
        """Return the `length` bytes that the device wrote, as they lie in the request's buffers."""
        parts = []
        for address, size in request.writable:
            count = min(size, length)
            parts.append(await self._qtest.read_bytes(address, count) if count else b"")
            length -= count
        return parts


class SplitQueue(Queue):
    """A split virtqueue (section 2.7)."""

    def __init__(self, device: VirtioPci, index: int, size: int, vector: int, notify: int) -> None:
        super().__init__(device, index, size, vector, notify)
        self.desc = self.ram.allocate(16 * size, 4096)
        self.driver = self.avail = self.ram.allocate(6 + 2 * size, 2)
        self.device = self.used = self.ram.allocate(6 + 8 * size, 4)
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._available = 0
        self._seen = 0

    async def clear(self) -> None:
        """Make the ring all zeros, as a driver hands it to a device."""
        await self._qtest.write_bytes(self.desc, bytes(16 * self.size))
        await self._qtest.write_bytes(self.avail, bytes(6 + 2 * self.size))
        await self._qtest.write_bytes(self.used, bytes(6 + 8 * self.size))

    async def _submit(self, rows: Sequence[Row]) -> int:
        slots = [self._free.pop(0) for _ in rows]
        for slot, row in zip(slots, _linked(rows, slots), strict=True):
            await self._qtest.write_bytes(self.desc + 16 * slot, row)
        self._chains[slots[0]] = slots
        await self.add_head(slots[0])
        return slots[0]

    def _table(self, rows: Sequence[Row]) -> bytes:
        return b"".join(_linked(rows, range(len(rows))))

    async def add_head(self, head: int) -> None:
        """Enter a head into the available ring, and publish it."""
        await self._qtest.write(self.avail + 4 + 2 * (self._available % self.size), head, 2)
        self._available += 1
        await self._qtest.write(self.avail + 2, self._available & 0xFFFF, 2)

    async def used_index(self) -> int:
        """Return the index of the used ring."""
        return await self._qtest.read(self.used + 2, 2)

    async def take(self) -> list[tuple[int, int]]:
        """Return (head, length) of what was used since the last time."""
        end = await self.used_index()
        taken = []
        while self._seen & 0xFFFF != end:
            place = self.used + 4 + 8 * (self._seen % self.size)
            head, length = await self._qtest.read(place), await self._qtest.read(place + 4)
            self._free += self._chains.pop(head)
            self._seen += 1
            taken.append((head, length))
        return taken


class PackedQueue(Queue):
    """A packed virtqueue (section 2.8)."""

    def __init__(self, device: VirtioPci, index: int, size: int, vector: int, notify: int) -> None:
        super().__init__(device, index, size, vector, notify)
        self.desc = self.ram.allocate(16 * size, 4096)
        self.driver = self.ram.allocate(4, 4)
        self.device = self.ram.allocate(4, 4)
        self._ids = list(range(size))
        self._lengths: dict[int, int] = {}
        self._available = (0, True)
        self._next = (0, True)

    async def clear(self) -> None:
        """Make the ring all zeros, as a driver hands it to a device."""
        await self._qtest.write_bytes(self.desc, bytes(16 * self.size))
        await self._qtest.write_bytes(self.driver, bytes(4))
        await self._qtest.write_bytes(self.device, bytes(4))

    async def _submit(self, rows: Sequence[Row]) -> int:
        name = self._ids.pop(0)
        self._lengths[name] = len(rows)
        first = None
        for number, (address, size, kind) in enumerate(rows):
            position, wrap = self._available
            flags = kind | (NEXT if number + 1 < len(rows) else 0) | (_AVAIL if wrap else _USED)
            place = self.desc + 16 * position
            await self._qtest.write_bytes(place, struct.pack("<QIH", address, size, name))
            # The first descriptor's flags make the whole chain available.
            if first is None:
                first = place, flags
            else:
                await self._qtest.write(place + 14, flags, 2)
            self._available = self._advanced(self._available, 1)
        assert first is not None
        await self._qtest.write(first[0] + 14, first[1], 2)
        return name

    def _table(self, rows: Sequence[Row]) -> bytes:
        return b"".join(struct.pack("<QIHH", address, size, 0, flags) for address, size, flags in rows)

    async def take(self) -> list[tuple[int, int]]:
        """Return (buffer id, length) of what was used since the last time."""
        taken = []
        while await self._is_used(*self._next):
            data = await self._qtest.read_bytes(self.desc + 16 * self._next[0], 16)
            _, length, name, _ = struct.unpack("<QIHH", data)
            self._next = self._advanced(self._next, self._lengths.pop(name))
            self._ids.append(name)
            taken.append((name, length))
        return taken

    async def _is_used(self, position: int, wrap: bool) -> bool:
        flags = await self._qtest.read(self.desc + 16 * position + 14, 2)
        return bool(flags & _AVAIL) == bool(flags & _USED) == wrap

    def _advanced(self, place: tuple[int, bool], count: int) -> tuple[int, bool]:
        position, wrap = place
        position += count
        return (position - self.size, not wrap) if position >= self.size else (position, wrap)


_Q = TypeVar("_Q", bound=Queue)


class VirtioPci:
    """A virtio device as its driver sees it. `probe()` makes one."""

    def __init__(self, pci: PciDevice, bars: dict[int, Bar], msix: MsiX | None, ram: Ram) -> None:
        self.pci = pci
        self.qtest = pci.bus.qtest
        self.bars = bars
        self.ram = ram
        self.structures: list[Structure] = []
        self.regions: dict[int, int] = {}
        self.features = 0
        self._msix = msix
        self._multiplier = 0

    @property
    def msix(self) -> MsiX:
        """Its interrupts. Raises LookupError for one that was probed without."""
        if self._msix is None:
            raise LookupError("MSI-X is off")
        return self._msix

    async def find_regions(self) -> None:
        """Find the structures; the first of a type in a BAR that there is counts."""
        self.structures = await structures(self.pci)
        for structure in self.structures:
            if structure.kind in self.regions or structure.bar not in self.bars:
                continue
            self.regions[structure.kind] = self.bars[structure.bar].address + structure.offset
            if structure.kind == NOTIFY:
                self._multiplier = structure.multiplier

    async def common(self, field: tuple[int, int]) -> int:
        """Read a field of the common configuration."""
        return await self.qtest.read(self.regions[COMMON] + field[0], field[1])

    async def set_common(self, field: tuple[int, int], value: int) -> None:
        """Write a field of the common configuration."""
        await self.qtest.write(self.regions[COMMON] + field[0], value, field[1])

    async def status(self) -> int:
        """Read the device status."""
        return await self.common(_STATUS)

    async def set_status(self, status: int) -> None:
        """Write the device status."""
        await self.set_common(_STATUS, status)

    async def reset(self) -> None:
        """Reset the device (section 4.1.4.3.2)."""
        await self.set_status(0)
        with trio.fail_after(60):
            while await self.status():
                pass

    async def offered(self) -> int:
        """Return the features that are offered."""
        features = 0
        for half in range(2):
            await self.set_common(_DEVICE_FEATURE_SELECT, half)
            features |= await self.common(_DEVICE_FEATURE) << 32 * half
        return features

    async def negotiate(self, wanted: int) -> int:
        """Begin to drive the device, and accept what of `wanted` is offered; return that."""
        await self.reset()
        await self.set_status(ACKNOWLEDGE | DRIVER)
        self.features = await self.offered() & (wanted | VERSION_1)
        for half in range(2):
            await self.set_common(_DRIVER_FEATURE_SELECT, half)
            await self.set_common(_DRIVER_FEATURE, self.features >> 32 * half & 0xFFFF_FFFF)
        await self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert await self.status() & FEATURES_OK, "the device does not accept the features"
        return self.features

    async def set_up_queue(self, index: int = 0, *, size: int | None = None, vector: int = 0) -> SplitQueue:
        """Set up and enable a split queue, of the device's size by default."""
        queue = await self._set_up(SplitQueue, index, size, vector)
        assert not self.features & RING_PACKED, "the driver accepted packed rings"
        return queue

    async def set_up_packed_queue(
        self, index: int = 0, *, size: int | None = None, vector: int = 0
    ) -> PackedQueue:
        """Set up and enable a packed queue, of the device's size by default."""
        queue = await self._set_up(PackedQueue, index, size, vector)
        assert self.features & RING_PACKED, "the driver did not accept packed rings"
        return queue

    async def _set_up(self, kind: type[_Q], index: int, size: int | None, vector: int) -> _Q:
        await self.set_common(_QUEUE_SELECT, index)
        most = await self.common(_QUEUE_SIZE)
        notify = self.regions[NOTIFY] + await self.common(_QUEUE_NOTIFY_OFF) * self._multiplier
        queue = kind(self, index, size or most, vector, notify)
        await queue.clear()
        await self.set_common(_QUEUE_SIZE, queue.size)
        if self._msix is not None:
            await self.set_common(_QUEUE_VECTOR, vector)
        for field, address in (
            (_QUEUE_DESC, queue.desc),
            (_QUEUE_DRIVER, queue.driver),
            (_QUEUE_DEVICE, queue.device),
        ):
            await self.set_common((field, 4), address & 0xFFFF_FFFF)
            await self.set_common((field + 4, 4), address >> 32)
        await self.set_common(_QUEUE_ENABLE, 1)
        return queue

    async def start(self) -> None:
        """Say that the driver is ready: the device may use its queues."""
        await self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    async def set_config_vector(self, vector: int) -> None:
        """Have changes of the configuration space interrupt with `vector`."""
        await self.set_common(_CONFIG_VECTOR, vector)

    async def config(self, offset: int, size: int) -> bytes:
        """Read the device's configuration space, again if it changed meanwhile (section 4.1.4.3.1)."""
        while True:
            before = await self.common(_GENERATION)
            data = bytes([await self.qtest.read(self.regions[DEVICE] + offset + i, 1) for i in range(size)])
            if await self.common(_GENERATION) == before:
                return data

    async def interrupts(self) -> bool:
        """Tell whether it asserts its interrupt line: bit 3 of the PCI status register."""
        return bool(await self.pci.read(STATUS, 2) & STATUS_INTERRUPT)

    async def isr(self) -> int:
        """Read the interrupt status, which clears it: 1 a queue, 2 the configuration."""
        return await self.qtest.read(self.regions[ISR], 1)


async def probe(machine: Machine, device_type: int, *, number: int = 0, msix: bool = True) -> VirtioPci:
    """Set up the `number`th device of this type: BARs placed, capabilities found, MSI-X on if wanted.

    Raises LookupError if the machine has no such device.
    """
    ids = {0x1040 + device_type, TRANSITIONAL.get(device_type)}
    found = [each for each in await machine.bus.walk() if await _is_virtio(each, ids)]
    if number >= len(found):
        raise LookupError(f"the machine has {len(found)} virtio devices of type {device_type}")
    pci = found[number]
    bars = await pci.place_bars()
    messages = _MESSAGES + pci.address * _MESSAGES_STEP // 8
    interrupts = await MsiX.enable(pci, bars, messages) if msix else None
    device = VirtioPci(pci, bars, interrupts, Ram(machine.qtest, _RAM + pci.address // 8 * 0x10_0000))
    await device.find_regions()
    return device


async def _is_virtio(pci: PciDevice, ids: set[int | None]) -> bool:
    word = await pci.read(0)
    return word & 0xFFFF == VENDOR and word >> 16 in ids


def _linked(rows: Sequence[Row], slots: Sequence[int]) -> list[bytes]:
    """Return the descriptors of a chain that lies in `slots`."""
    following = [*slots[1:], 0]
    return [
        struct.pack("<QIHH", address, size, flags | (NEXT if place + 1 < len(rows) else 0), following[place])
        for place, (address, size, flags) in enumerate(rows)
    ]
