"""The guest's view of the ivshmem PCI device: identity, BARs and the registers of BAR0.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem PCI device's guest interface".
"""

from __future__ import annotations

from enum import IntEnum

from protocol.errors import LocalProtocolError
from protocol.ivshmem.messages import MAX_ID
from protocol.virtio.ids import PCI_VENDOR_ID_REDHAT_QUMRANET

PCI_VENDOR_ID = PCI_VENDOR_ID_REDHAT_QUMRANET
PCI_DEVICE_ID = 0x1110
PCI_REVISION = 1
"""Revision 0 was QEMU before 2.6, with INTx and a BAR2 that may appear late."""

REGISTERS_BAR = 0
REGISTERS_SIZE = 256
MSIX_BAR = 1
MSIX_BAR_MIN_SIZE = 4096
MEMORY_BAR = 2

MIN_MEMORY_SIZE = 4096
"""QEMU refuses shared memory below one page, and aborts on a size that is not a power of two."""


class Register(IntEnum):
    """Offsets in BAR0 in bytes; a register has four bytes."""

    INTERRUPT_MASK = 0
    INTERRUPT_STATUS = 4
    IV_POSITION = 8
    DOORBELL = 12


REGISTER_SIZE = 4


def doorbell(peer: int, vector: int) -> int:
    """Return the word that interrupts `peer` on `vector` when a guest writes it to the Doorbell register.

    Raises LocalProtocolError if one of them does not fit into 16 bits.
    """
    if not 0 <= peer <= MAX_ID or not 0 <= vector <= 0xFFFF:
        raise LocalProtocolError(f"the Doorbell register cannot name peer {peer}, vector {vector}")
    return peer << 16 | vector


def split_doorbell(word: int) -> tuple[int, int]:
    """Return (peer, vector) of a word written to the Doorbell register."""
    return word >> 16 & 0xFFFF, word & 0xFFFF
