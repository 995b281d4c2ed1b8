"""What the fields of vhost-user messages hold beside plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from protocol.virtio.bits import Bits

MAX_TABLE_REGIONS = 8
"""Most regions that one SET_MEM_TABLE describes; more need CONFIGURE_MEM_SLOTS."""

MAX_CONFIG_SIZE = 256
"""Most bytes of configuration space that one message carries."""

MAX_SHARED_MEMORY_REGIONS = 256
"""Shared memory regions a device may have: ids are of eight bits."""


class VringAddressFlag(Bits):
    """Flags of SET_VRING_ADDR."""

    NONE = 0
    LOG = 1
    """Log writes to the used ring, at the message's log address."""


class ConfigFlag(Bits):
    """Flags of SET_CONFIG: who changes the configuration space."""

    DRIVER = 0
    MIGRATION = 1
    """Live migration restores it: also fields that are read-only to the driver."""


class Permission(Bits):
    """What an IOTLB entry allows, or what was missed."""

    NONE = 0
    READ = 1
    WRITE = 2


class IotlbType(IntEnum):
    """What an IOTLB message says."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class TransferDirection(IntEnum):
    """Where the state of a device goes in SET_DEVICE_STATE_FD."""

    SAVE = 0
    LOAD = 1


class MigrationPhase(IntEnum):
    """When the state of a device is transferred."""

    STOPPED = 0


class MapFlag(Bits):
    """How SHMEM_MAP maps."""

    READ_ONLY = 0
    READ_WRITE = 1


class XenMapFlag(Bits):
    """How a region of a Xen domain is mapped."""

    FOREIGN = 1 << 0
    GRANT = 1 << 1
    NO_ADVANCE_MAP = 1 << 8


@dataclass(frozen=True)
class XenMapping:
    """What a memory region has besides where XEN_MMAP was negotiated."""

    flags: XenMapFlag
    domain: int

    def __str__(self) -> str:
        return f"xen domain {self.domain} {self.flags}"


@dataclass(frozen=True)
class MemoryRegion:
    """A region of guest memory: `size` bytes, in the file that comes along from `mmap_offset` on.

    `user_address` is where the front-end has it mapped, a guest address where GPA_ADDRESSES was
    negotiated; ring addresses are given in these terms.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int = 0
    xen: XenMapping | None = None

    def is_same_range(self, other: MemoryRegion) -> bool:
        """True where REM_MEM_REG of `other` removes this region: its mmap offset is ignored."""
        return (self.guest_address, self.user_address, self.size) == (
            other.guest_address,
            other.user_address,
            other.size,
        )

    def __str__(self) -> str:
        xen = f", {self.xen}" if self.xen else ""
        return (
            f"guest {self.guest_address:#x} size {self.size:#x}"
            f" user {self.user_address:#x} offset {self.mmap_offset:#x}{xen}"
        )
