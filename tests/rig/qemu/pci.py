"""PCI as firmware and drivers see it: bus 0, BARs, capabilities.

Numbers of registers and bits: PCI Local Bus Specification 3.0, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tests.rig.qemu.qtest import QTest

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_CODE = 0x0A
BARS = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
CAPABILITIES = 0x34
INTERRUPT_PIN = 0x3D

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITY_LIST = 1 << 4

_BAR_COUNT = 6
_NO_FUNCTION = 0xFFFF


class Space(Enum):
    """An address space that a BAR asks for, with where the tests start to give it out.

    These are free in both machines with less than 3.5 GiB of memory. 64-bit BARs go above
    4 GiB, so that the upper half of their address is used too.
    """

    IO = 0xC000
    MEMORY_32 = 0xE000_0000
    MEMORY_64 = 0x100_0000_0000


@dataclass(frozen=True)
class Bar:
    """A base address register that has been placed. Address and size are in bytes."""

    number: int
    address: int
    size: int
    space: Space
    is_prefetchable: bool


@dataclass(frozen=True)
class Capability:
    """One entry of a function's capability list: its id, and where in configuration space it starts."""

    id: int
    offset: int


class PciBus:
    """Bus 0 of a machine, with its address space still empty: `place()` gives it out."""

    def __init__(self, qtest: QTest) -> None:
        self.qtest = qtest
        self._lock = trio.Lock()
        self._free = {space: space.value for space in Space}

    async def read_config(self, function: int, offset: int, size: int = 4) -> int:
        """Read `size` bytes of configuration space; `function` is device * 8 + function."""
        async with self._lock:
            await self._select(function, offset)
            return await self.qtest.port_in(CONFIG_DATA + offset % 4, size)

    async def write_config(self, function: int, offset: int, value: int, size: int = 4) -> None:
        """Write `size` bytes of configuration space."""
        async with self._lock:
            await self._select(function, offset)
            await self.qtest.port_out(CONFIG_DATA + offset % 4, value, size)

    async def _select(self, function: int, offset: int) -> None:
        await self.qtest.port_out(CONFIG_ADDRESS, 1 << 31 | function << 8 | offset & 0xFC)

    async def walk(self) -> list[PciDevice]:
        """Return every function that answers, by rising address."""
        return [
            PciDevice(self, function)
            for function in range(256)
            if await self.read_config(function, VENDOR_ID, 2) != _NO_FUNCTION
        ]

    async def find(self, vendor: int, device: int) -> list[PciDevice]:
        """Return the functions with these ids, by rising address; none is an empty list."""
        ids = device << 16 | vendor
        return [found for found in await self.walk() if await found.read(VENDOR_ID) == ids]

    def place(self, space: Space, size: int) -> int:
        """Return an address for a BAR of `size` bytes, naturally aligned and never given out before."""
        address = -(-self._free[space] // size) * size
        self._free[space] = address + size
        return address


@dataclass(frozen=True)
class PciDevice:
    """One function on the bus; `address` is device * 8 + function."""

    bus: PciBus
    address: int

    async def read(self, offset: int, size: int = 4) -> int:
        """Read `size` bytes of its configuration space."""
        return await self.bus.read_config(self.address, offset, size)

    async def write(self, offset: int, value: int, size: int = 4) -> None:
        """Write `size` bytes of its configuration space."""
        await self.bus.write_config(self.address, offset, value, size)

    async def place_bars(self) -> dict[int, Bar]:
        """Size and place every BAR, then switch memory, I/O and bus mastering on. Return them by number."""
        bars: dict[int, Bar] = {}
        number = 0
        while number < _BAR_COUNT:
            bar = await self._place_bar(number)
            if bar is not None:
                bars[number] = bar
            number += 2 if bar is not None and bar.space is Space.MEMORY_64 else 1
        await self.write(COMMAND, COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER, 2)
        return bars

    async def _place_bar(self, number: int) -> Bar | None:
        """Size and place one BAR; None if it is not implemented (section 6.2.5.1)."""
        register = BARS + 4 * number
        low = await self._probe(register)
        if low == 0:
            return None
        space = _space(low)
        high = await self._probe(register + 4) if space is Space.MEMORY_64 else 0xFFFF_FFFF
        flags = 0x3 if space is Space.IO else 0xF
        size = -(high << 32 | low & ~flags) & (1 << 64) - 1
        address = self.bus.place(space, size)
        await self.write(register, address & 0xFFFF_FFFF)
        if space is Space.MEMORY_64:
            await self.write(register + 4, address >> 32)
        return Bar(number, address, size, space, is_prefetchable=space is not Space.IO and bool(low & 8))

    async def _probe(self, register: int) -> int:
        await self.write(register, 0xFFFF_FFFF)
        return await self.read(register)

    async def capabilities(self) -> list[Capability]:
        """Return the capability list in its order (section 6.7). Raises ValueError if it runs in a circle."""
        found: list[Capability] = []
        if not await self.read(STATUS, 2) & STATUS_CAPABILITY_LIST:
            return found
        offset = await self.read(CAPABILITIES, 1) & 0xFC
        while offset:
            if any(capability.offset == offset for capability in found):
                raise ValueError(f"the capability list returns to {offset:#x}")
            found.append(Capability(await self.read(offset, 1), offset))
            offset = await self.read(offset + 1, 1) & 0xFC
        return found

    async def capability(self, wanted: int) -> Capability:
        """Return the first capability with the id `wanted`. Raises LookupError if there is none."""
        for capability in await self.capabilities():
            if capability.id == wanted:
                return capability
        raise LookupError(f"the function has no capability {wanted:#x}")


def _space(bar: int) -> Space:
    """Tell from its low bits which space a BAR asks for."""
    if bar & 1:
        return Space.IO
    return Space.MEMORY_64 if bar & 6 == 4 else Space.MEMORY_32
