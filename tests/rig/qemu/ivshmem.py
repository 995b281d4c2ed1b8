"""An ivshmem device as its guest driver sees it, and the QEMU arguments that attach one.

Registers: QEMU, docs/specs/ivshmem-spec. Written as numbers here, so that they are checked
against a real QEMU and not against our own layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.rig.qemu.msix import MsiX

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.qemu.pci import Bar, PciDevice
    from tests.rig.qemu.qemu import Machine

VENDOR = 0x1AF4
DEVICE = 0x1110
REGISTERS_BAR = 0
MSIX_BAR = 1
MEMORY_BAR = 2
_IV_POSITION = 8
_DOORBELL = 12

#: Where in guest RAM the interrupt messages go: 64 KiB for each device in the order of the bus.
MESSAGES = 0x20_0000
_MESSAGES_STEP = 0x1_0000


def doorbell_arguments(socket: Path, *, vectors: int = 2, name: str = "iv", extra: str = "") -> list[str]:
    """Return the QEMU arguments for an ivshmem-doorbell device on the server at `socket`.

    `extra` is appended to the device's properties, with its leading comma.
    """
    return [
        *("-chardev", f"socket,id={name}-server,path={socket}"),
        *("-device", f"ivshmem-doorbell,id={name},chardev={name}-server,vectors={vectors}{extra}"),
    ]


class IvshmemDevice:
    """The device, its BARs placed and its interrupts enabled. `probe()` makes one."""

    def __init__(self, pci: PciDevice, bars: dict[int, Bar], msix: MsiX | None) -> None:
        self.pci = pci
        self.bars = bars
        self._qtest = pci.bus.qtest
        self._msix = msix

    @property
    def msix(self) -> MsiX:
        """Its interrupts. Raises LookupError for ivshmem-plain, which has none."""
        if self._msix is None:
            raise LookupError("ivshmem-plain has no interrupts")
        return self._msix

    async def position(self) -> int:
        """Read IVPosition: the id the server gave."""
        return await self._qtest.read(self.bars[REGISTERS_BAR].address + _IV_POSITION)

    async def ring(self, peer: int, vector: int = 0) -> None:
        """Write the doorbell: interrupt `vector` of `peer`."""
        await self._qtest.write(self.bars[REGISTERS_BAR].address + _DOORBELL, peer << 16 | vector)

    async def read(self, offset: int, size: int) -> bytes:
        """Read the shared memory through BAR2."""
        return await self._qtest.read_bytes(self.bars[MEMORY_BAR].address + offset, size)

    async def write(self, offset: int, data: bytes) -> None:
        """Write the shared memory through BAR2."""
        await self._qtest.write_bytes(self.bars[MEMORY_BAR].address + offset, data)


async def probe(machine: Machine, number: int = 0) -> IvshmemDevice:
    """Set up the `number`th ivshmem device of the machine as a driver does: BARs, then MSI-X.

    Raises LookupError if the machine has no such device.
    """
    found = await machine.bus.find(VENDOR, DEVICE)
    if number >= len(found):
        raise LookupError(f"the machine has {len(found)} ivshmem devices")
    pci = found[number]
    bars = await pci.place_bars()
    if MSIX_BAR not in bars:
        return IvshmemDevice(pci, bars, None)
    msix = await MsiX.enable(pci, bars, MESSAGES + number * _MESSAGES_STEP)
    return IvshmemDevice(pci, bars, msix)
