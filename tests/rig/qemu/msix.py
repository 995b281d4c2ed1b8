"""MSI-X as a driver sets it up, with messages that go to guest RAM for the test to read.

Structures: PCI Local Bus Specification 3.0, section 6.8.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.rig.qemu.pci import Bar, PciDevice
    from tests.rig.qemu.qtest import QTest

CAPABILITY_ID = 0x11
_MESSAGE_CONTROL = 2
_TABLE = 4
_PENDING_BITS = 8
_ENABLE = 1 << 15
_MASK_ALL = 1 << 14
_ENTRY_BYTES = 16
_VECTOR_CONTROL = 12


def message(vector: int) -> int:
    """Return the data that `vector` writes when it fires; never 0, which stands for "not fired"."""
    return 0x1000 + vector


class MsiX:
    """The interrupts of one function, enabled. Vector V stores `message(V)` at `messages + 4 * V`."""

    def __init__(self, qtest: QTest, table: int, pending_bits: int, messages: int) -> None:
        self._qtest = qtest
        self._table = table
        self._pending_bits = pending_bits
        self._messages = messages

    @classmethod
    async def enable(cls, device: PciDevice, bars: Mapping[int, Bar], messages: int) -> MsiX:
        """Point every vector at guest RAM, unmask it, and switch MSI-X on.

        `bars` are those of `device`, placed; `messages` is a guest-physical address with room
        for 4 bytes a vector. Raises LookupError if the function has no MSI-X.
        """
        qtest = device.bus.qtest
        offset = (await device.capability(CAPABILITY_ID)).offset
        table = await device.read(offset + _TABLE)
        pending_bits = await device.read(offset + _PENDING_BITS)
        msix = cls(
            qtest,
            bars[table & 7].address + (table & ~7),
            bars[pending_bits & 7].address + (pending_bits & ~7),
            messages,
        )
        vectors = await vector_count(device)
        await qtest.write_bytes(messages, bytes(4 * vectors))
        for vector in range(vectors):
            await msix._set_entry(vector)
        control = await device.read(offset + _MESSAGE_CONTROL, 2)
        await device.write(offset + _MESSAGE_CONTROL, control & ~_MASK_ALL | _ENABLE, 2)
        return msix

    async def _set_entry(self, vector: int) -> None:
        entry = self._table + _ENTRY_BYTES * vector
        address = self._messages + 4 * vector
        for offset, value in enumerate((address & 0xFFFF_FFFF, address >> 32, message(vector), 0)):
            await self._qtest.write(entry + 4 * offset, value)

    async def mask(self, vector: int) -> None:
        """Hold the vector's messages back: they become pending."""
        await self._qtest.write(self._table + _ENTRY_BYTES * vector + _VECTOR_CONTROL, 1)

    async def unmask(self, vector: int) -> None:
        """Let the vector's messages through, a pending one at once."""
        await self._qtest.write(self._table + _ENTRY_BYTES * vector + _VECTOR_CONTROL, 0)

    async def pending(self, vector: int) -> bool:
        """Tell whether the vector's bit in the pending bit array is set."""
        word = await self._qtest.read(self._pending_bits + vector // 32 * 4)
        return bool(word >> vector % 32 & 1)

    async def fired(self, vector: int) -> bool:
        """Tell whether the vector's message has landed since `wait()` last took one."""
        return await self._qtest.read(self._messages + 4 * vector) != 0

    async def wait(self, vector: int, *, seconds: float = 60) -> int:
        """Wait for the vector's message, take it away and return it. Raises trio.TooSlowError."""
        address = self._messages + 4 * vector
        data = await self._qtest.wait_for(address, bool, seconds=seconds)
        await self._qtest.write(address, 0)
        return data


async def vector_count(device: PciDevice) -> int:
    """Return the size of the function's vector table. Raises LookupError if it has no MSI-X."""
    offset = (await device.capability(CAPABILITY_ID)).offset
    return (await device.read(offset + _MESSAGE_CONTROL, 2) & 0x7FF) + 1
