"""Messages about memory: of the guest, I/O translations, shared regions and objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING
from uuid import UUID

from construct import (
    Array,
    Bytes,
    Const,
    If,
    Int8un,
    Int32un,
    Int64un,
    Optional,
    Padding,
    Rebuild,
    Struct,
    len_,
    this,
)

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage, Number, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.payload import Payload, Record, typed
from protocol.virtio.bits import Bits
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_TABLE_REGIONS = 8
"""Most regions in one SET_MEM_TABLE; more need CONFIGURE_MEM_SLOTS."""

MAX_SHARED_MEMORY_REGIONS = 256
"""Most shared memory regions of a device: ids have eight bits."""


class Permission(Bits):
    """The accesses that an IOTLB entry allows; in a miss, the access that was tried."""

    NONE = 0
    READ = 1
    WRITE = 2


class IotlbType(IntEnum):
    """The kinds of IOTLB message."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class XenMapFlag(Bits):
    """How a region of a Xen domain is mapped."""

    FOREIGN = 1 << 0
    GRANT = 1 << 1
    NO_ADVANCE_MAP = 1 << 8


@dataclass(frozen=True)
class XenMapping:
    """The additional fields of a memory region where XEN_MMAP was negotiated."""

    flags: XenMapFlag
    domain: int

    def __str__(self) -> str:
        return f"xen domain {self.domain} {self.flags}"


@dataclass(frozen=True)
class MemoryRegion:
    """A region of guest memory: `size` bytes, from `mmap_offset` on in the file sent with it.

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


_XEN = Record(XenMapping, "flags" / typed(Int32un, XenMapFlag), "domain" / Int32un)

_REGION = Record(
    MemoryRegion,
    "guest_address" / Int64un,
    "size" / Int64un,
    "user_address" / Int64un,
    "mmap_offset" / Int64un,
    "xen" / If(this._root._params.xen, _XEN),
)

_TABLE = Payload(
    "memory regions",
    Struct(
        "count" / Rebuild(Int32un, len_(this.regions)),
        Padding(4),
        "regions" / typed(Array(this.count, _REGION), tuple, list),
        # User Mode Linux always sends space for two regions, whatever the count: the rest is ignored.
    ),
    range(8, 8 + 32 * MAX_TABLE_REGIONS + 1, 32),
    range(8, 8 + 40 * MAX_TABLE_REGIONS + 1, 40),
)

_SINGLE_REGION = Payload("single memory region", Struct(Padding(8), "region" / _REGION), {40}, {48})

IOTLB = Payload(
    "iotlb",
    Struct(
        "iova" / Int64un,
        "size" / Int64un,
        "user_address" / Int64un,
        "permission" / typed(Int8un, Permission),
        "type" / typed(Int8un, IotlbType),
        Optional(Const(bytes(6))),
    ),
    {26, 32},
)

SHARED_OBJECT = Payload(
    "shared object",
    Struct("uuid" / typed(Bytes(16), lambda raw: UUID(bytes=raw), lambda value: value.bytes)),
    {16},
)


@dataclass(repr=False)
class MappedTable(Reply):
    """Postcopy: the regions, with the addresses at which the back-end has mapped them."""

    payload = _TABLE
    regions: tuple[MemoryRegion, ...]


@dataclass(repr=False)
class SetMemTable(FrontendMessage):
    """Replace all regions of guest memory; `fds` are the regions' files, in the same order.

    In postcopy, one without regions acknowledges the back-end's reply.
    """

    number = FrontendRequest.SET_MEM_TABLE
    payload = _TABLE
    postcopy_reply = MappedTable
    regions: tuple[MemoryRegion, ...]

    def allowed_fds(self) -> Collection[int]:
        """Return one for each region."""
        return {len(self.regions)}


class GetMaxMemSlots(FrontendMessage):
    """Ask how many regions the back-end can have."""

    number = FrontendRequest.GET_MAX_MEM_SLOTS
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    reply = Number


@dataclass(repr=False)
class MappedRegion(Reply):
    """Postcopy: the region, with the address at which the back-end has mapped it."""

    payload = _SINGLE_REGION
    region: MemoryRegion


@dataclass(repr=False)
class AddMemReg(FrontendMessage):
    """Add a region of guest memory; its file is the message's descriptor."""

    number = FrontendRequest.ADD_MEM_REG
    payload = _SINGLE_REGION
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    postcopy_reply = MappedRegion
    region: MemoryRegion


@dataclass(repr=False)
class RemMemReg(FrontendMessage):
    """Remove the region with this guest address, user address and size.

    Some front-ends send a descriptor with it: it is closed unused, as the specification demands.
    """

    number = FrontendRequest.REM_MEM_REG
    payload = _SINGLE_REGION
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    discarded_fds = 1
    region: MemoryRegion


@dataclass(repr=False)
class IotlbMsg(FrontendMessage):
    """Update or invalidate a translation of I/O virtual addresses."""

    number = FrontendRequest.IOTLB_MSG
    payload = IOTLB
    requirement = Requirement(Feature.ACCESS_PLATFORM)
    always_replied = True
    iova: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    user_address: int = field(metadata=HEX)
    permission: Permission
    type: IotlbType


@dataclass(repr=False)
class SharedMemory(Reply):
    """Sizes in bytes of the device's 256 shared memory regions, by id; 0 for a region that is absent."""

    payload = Payload(
        "shared memory configuration",
        Struct(
            "count" / Rebuild(Int32un, lambda context: sum(size > 0 for size in context.sizes)),
            Padding(4),
            "sizes" / typed(Array(MAX_SHARED_MEMORY_REGIONS, Int64un), tuple, list),
        ),
        {8 + 8 * MAX_SHARED_MEMORY_REGIONS},
    )
    sizes: tuple[int, ...] = field(metadata=HEX)

    def __post_init__(self) -> None:
        self.sizes = self.sizes + (0,) * (MAX_SHARED_MEMORY_REGIONS - len(self.sizes))


class GetShmemConfig(FrontendMessage):
    """Ask for the sizes of the device's shared memory regions."""

    number = FrontendRequest.GET_SHMEM_CONFIG
    requirement = Requirement(protocol=ProtocolFeature.SHMEM)
    reply = SharedMemory


@dataclass(repr=False)
class SharedObject(Reply):
    """The dma-buf of a shared object; without a descriptor if the UUID is unknown."""

    fd_counts = (0, 1)

    @property
    def failed(self) -> bool:
        """True where no descriptor came."""
        return not self.fds

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return a failure; a success needs a descriptor."""
        return super().outcome(True) if ok else cls()


@dataclass(repr=False)
class GetSharedObject(FrontendMessage):
    """Ask for the dma-buf of an object that this back-end has announced."""

    number = FrontendRequest.GET_SHARED_OBJECT
    payload = SHARED_OBJECT
    requirement = Requirement(protocol=ProtocolFeature.SHARED_OBJECT)
    reply = SharedObject
    uuid: UUID
