"""Requests of a front-end: guest memory and what else is shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from protocol.vhost_user.values import (
        IotlbType,
        MemoryRegion,
        Permission,
    )


@dataclass(repr=False)
class SetMemTable(FrontendMessage):
    """Replace all regions of guest memory; `fds` are the regions' files, in the same order.

    In postcopy, one without regions acknowledges the back-end's reply.
    """

    number = FrontendRequest.SET_MEM_TABLE
    payload = payloads.MEMORY_TABLE
    postcopy_reply = replies.MappedTable
    regions: tuple[MemoryRegion, ...]

    def allowed_fds(self) -> Collection[int]:
        """Return one for each region."""
        return {len(self.regions)}


class GetMaxMemSlots(FrontendMessage):
    """Ask how many regions the back-end can have."""

    number = FrontendRequest.GET_MAX_MEM_SLOTS
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    reply = replies.Number


@dataclass(repr=False)
class AddMemReg(FrontendMessage):
    """Add a region of guest memory, whose file comes along."""

    number = FrontendRequest.ADD_MEM_REG
    payload = payloads.SINGLE_REGION
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    postcopy_reply = replies.MappedRegion
    region: MemoryRegion


@dataclass(repr=False)
class RemMemReg(FrontendMessage):
    """Remove the region with this guest address, user address and size.

    Some front-ends send a descriptor with it: it is closed unused, as the specification demands.
    """

    number = FrontendRequest.REM_MEM_REG
    payload = payloads.SINGLE_REGION
    requirement = Requirement(protocol=ProtocolFeature.CONFIGURE_MEM_SLOTS)
    discarded_fds = 1
    region: MemoryRegion


@dataclass(repr=False)
class IotlbMsg(FrontendMessage):
    """Update or invalidate a translation of I/O virtual addresses."""

    number = FrontendRequest.IOTLB_MSG
    payload = payloads.IOTLB
    requirement = Requirement(Feature.ACCESS_PLATFORM)
    always_replied = True
    iova: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    user_address: int = field(metadata=HEX)
    permission: Permission
    type: IotlbType


class GetShmemConfig(FrontendMessage):
    """Ask for the sizes of the device's shared memory regions."""

    number = FrontendRequest.GET_SHMEM_CONFIG
    requirement = Requirement(protocol=ProtocolFeature.SHMEM)
    reply = replies.SharedMemory


@dataclass(repr=False)
class GetSharedObject(FrontendMessage):
    """Ask for the dma-buf of an object that this back-end has announced."""

    number = FrontendRequest.GET_SHARED_OBJECT
    payload = payloads.SHARED_OBJECT
    requirement = Requirement(protocol=ProtocolFeature.SHARED_OBJECT)
    reply = replies.SharedObject
    uuid: UUID
