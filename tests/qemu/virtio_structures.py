"""Where a virtio-pci function has its structures: capabilities (virtio 1.3, 4.1.4).

And the one that leads to all others through configuration space alone, for firmware that has mapped
no BARs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.rig.qemu.pci import PciDevice

COMMON, NOTIFY, ISR, DEVICE, PCI_ACCESS, SHARED_MEMORY = 1, 2, 3, 4, 5, 8

_VENDOR_SPECIFIC = 0x09
_LENGTH, _TYPE, _BAR, _ID, _OFFSET, _SIZE, _REST = 2, 3, 4, 5, 8, 12, 16


@dataclass(frozen=True)
class Structure:
    """A structure by its capability: `offset` and `size` are bytes within the BAR number `bar`."""

    kind: int
    bar: int
    offset: int
    size: int
    capability: int
    """Where the capability starts in configuration space."""
    capability_size: int
    id: int = 0
    """Which of several; for shared memory, the region's number."""
    multiplier: int = 0
    """Of NOTIFY: bytes from one queue's notification address to the next one's."""


async def structures(pci: PciDevice) -> list[Structure]:
    """Return the structures of a function in the order of its capability list, that of preference."""
    return [
        await _structure(pci, capability.offset)
        for capability in await pci.capabilities()
        if capability.id == _VENDOR_SPECIFIC
    ]


async def _structure(pci: PciDevice, at: int) -> Structure:
    kind = await pci.read(at + _TYPE, 1)
    offset, size = await pci.read(at + _OFFSET), await pci.read(at + _SIZE)
    rest = await pci.read(at + _REST) if kind in {NOTIFY, SHARED_MEMORY} else 0
    if kind == SHARED_MEMORY:
        offset, size = offset | rest << 32, size | await pci.read(at + _REST + 4) << 32
    return Structure(
        kind,
        await pci.read(at + _BAR, 1),
        offset,
        size,
        at,
        await pci.read(at + _LENGTH, 1),
        await pci.read(at + _ID, 1),
        rest if kind == NOTIFY else 0,
    )


class Window:
    """The PCI configuration access capability (4.1.4.9): BARs read and written with no BAR mapped."""

    def __init__(self, pci: PciDevice, structure: Structure) -> None:
        self._pci = pci
        self._at = structure.capability

    async def read(self, bar: int, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2 or 4) of a BAR."""
        await self._choose(bar, offset, size)
        return await self._pci.read(self._at + _REST, size)

    async def write(self, bar: int, offset: int, value: int, size: int) -> None:
        """Write `size` bytes (1, 2 or 4) of a BAR."""
        await self._choose(bar, offset, size)
        await self._pci.write(self._at + _REST, value, size)

    async def _choose(self, bar: int, offset: int, size: int) -> None:
        await self._pci.write(self._at + _BAR, bar, 1)
        await self._pci.write(self._at + _OFFSET, offset)
        await self._pci.write(self._at + _SIZE, size)
