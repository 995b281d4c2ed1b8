"""The back-end's own messages, over the socket that SET_BACKEND_REQ_FD passed.

A message with a descriptor also needs BACKEND_SEND_FD.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from construct import Int8un, Int64un, Padding, Struct

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, Ack, BackendMessage
from protocol.vhost_user.messages.memory import IOTLB, SHARED_OBJECT, IotlbType, Permission
from protocol.vhost_user.messages.vrings import VRING_ONLY
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import BackendRequest
from protocol.vhost_user.payload import FdWord, Payload, typed
from protocol.virtio.bits import Bits
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID


class MapFlag(Bits):
    """How SHMEM_MAP maps."""

    READ_ONLY = 0
    READ_WRITE = 1


def _requires(
    protocol: ProtocolFeature = ProtocolFeature.NONE, feature: Feature = Feature.NONE
) -> Requirement:
    return Requirement(feature, protocol | ProtocolFeature.BACKEND_REQ)


@dataclass(repr=False)
class BackendIotlbMsg(BackendMessage):
    """Report a missing translation, or an access that a translation does not allow."""

    number = BackendRequest.IOTLB_MSG
    payload = IOTLB
    requirement = _requires(feature=Feature.ACCESS_PLATFORM)
    iova: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    user_address: int = field(metadata=HEX)
    permission: Permission
    type: IotlbType


class ConfigChange(BackendMessage):
    """Report that the configuration space has changed."""

    number = BackendRequest.CONFIG_CHANGE_MSG
    requirement = _requires(ProtocolFeature.CONFIG)


@dataclass(repr=False)
class VringHostNotifier(BackendMessage):
    """Let the guest notify hardware itself: `size` bytes from `offset` on in the message's file.

    With `no_fd` the notifier is removed.
    """

    number = BackendRequest.VRING_HOST_NOTIFIER_MSG
    payload = Payload("vring area", FdWord("index", "size" / Int64un, "offset" / Int64un), {24})
    fd_counts = (0, 1)
    requirement = _requires(ProtocolFeature.HOST_NOTIFIER)
    index: int
    no_fd: bool
    size: int = field(metadata=HEX)
    offset: int = field(metadata=HEX)

    def allowed_fds(self) -> Collection[int]:
        """Return none with `no_fd`, otherwise one."""
        return {0 if self.no_fd else 1}


@dataclass(repr=False)
class _VringOnly(BackendMessage):
    payload = VRING_ONLY
    requirement = _requires(ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.REPLY_ACK)
    index: int


class VringCall(_VringOnly):
    """Call the driver in-band. Ask for a reply, or sockets fill up."""

    number = BackendRequest.VRING_CALL


class VringErr(_VringOnly):
    """Report a broken ring in-band. Ask for a reply, or sockets fill up."""

    number = BackendRequest.VRING_ERR


@dataclass(repr=False)
class _SharedObject(BackendMessage):
    payload = SHARED_OBJECT
    requirement = _requires(ProtocolFeature.SHARED_OBJECT)
    uuid: UUID


class SharedObjectAdd(_SharedObject):
    """Announce an object; other devices may then ask this back-end for it."""

    number = BackendRequest.SHARED_OBJECT_ADD


class SharedObjectRemove(_SharedObject):
    """Withdraw an announced object."""

    number = BackendRequest.SHARED_OBJECT_REMOVE


@dataclass(repr=False)
class LookedUpObject(Ack):
    """A front-end's answer to SHARED_OBJECT_LOOKUP: 0 and a dma-buf, or an error."""

    fd_counts = (0, 1)


class SharedObjectLookup(_SharedObject):
    """Ask for the dma-buf of an object that another device has announced."""

    number = BackendRequest.SHARED_OBJECT_LOOKUP
    reply = LookedUpObject


@dataclass(repr=False)
class _Mapping(BackendMessage):
    payload = Payload(
        "mmap",
        Struct(
            "shmid" / Int8un,
            Padding(7),
            "fd_offset" / Int64un,
            "shm_offset" / Int64un,
            "size" / Int64un,
            "flags" / typed(Int64un, MapFlag),
        ),
        {40},
    )
    requirement = _requires(ProtocolFeature.SHMEM)
    shmid: int
    fd_offset: int = field(metadata=HEX)
    shm_offset: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    flags: MapFlag = MapFlag.READ_ONLY


class ShmemMap(_Mapping):
    """Map `size` bytes of the message's file into the guest's shared memory region `shmid`."""

    number = BackendRequest.SHMEM_MAP
    fd_counts = (1,)


class ShmemUnmap(_Mapping):
    """Unmap a whole mapping from the guest's shared memory region `shmid`."""

    number = BackendRequest.SHMEM_UNMAP
