"""PCI configuration space and MSI-X (PCI 3.0, sections 6.1, 6.7 and 6.8.2)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class ConfigOffset(IntEnum):
    """Offsets in the header of a PCI function's configuration space."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION_ID = 0x08
    BASE_ADDRESS_0 = 0x10
    CAPABILITY_LIST = 0x34
    INTERRUPT_PIN = 0x3D


class Command(IntFlag):
    """Bits of the command register."""

    IO = 0x1
    MEMORY = 0x2
    MASTER = 0x4
    INTX_DISABLE = 0x400


class CapabilityId(IntEnum):
    """Ids of capabilities."""

    VENDOR_SPECIFIC = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


BAR_COUNT = 6
BAR_IO = 0x1
"""Bit of a base address register: the BAR is in I/O space, not in memory."""
BAR_MEMORY_TYPE_MASK = 0x6
BAR_MEMORY_TYPE_64 = 0x4
BAR_MEMORY_MASK = ~0xF

MSIX_FLAGS = 2
"""Offset of the message control word in the MSI-X capability."""
MSIX_TABLE = 4
MSIX_PBA = 8
MSIX_FLAGS_SIZE_MASK = 0x07FF
"""The number of table entries minus one."""
MSIX_FLAGS_MASK_ALL = 0x4000
MSIX_FLAGS_ENABLE = 0x8000
MSIX_BIR_MASK = 0x7
"""Bits with the number of the BAR in the table and PBA words; the others are the offset in it."""

MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_ADDRESS_LOW = 0
MSIX_ENTRY_ADDRESS_HIGH = 4
MSIX_ENTRY_DATA = 8
MSIX_ENTRY_CONTROL = 12
MSIX_ENTRY_CONTROL_MASKED = 0x1
