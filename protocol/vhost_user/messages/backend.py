"""The requests of a back-end, a class each; they go over the socket that SET_BACKEND_REQ_FD passed.

QEMU docs/interop/vhost-user.rst, "Back-end message types"; the columns are as in frontend_messages.
A request with a descriptor also needs BACKEND_SEND_FD.

==  =======================  ======  ====  ==============  ==========================================
 #  request                  size    fds   answer          needs
==  =======================  ======  ====  ==============  ==========================================
 1  IOTLB_MSG                26, 32  0     ack             feature ACCESS_PLATFORM and BACKEND_REQ
 2  CONFIG_CHANGE_MSG        0       0     ack             BACKEND_REQ|CONFIG
 3  VRING_HOST_NOTIFIER_MSG  24      0, 1  ack             BACKEND_REQ|HOST_NOTIFIER
 4  VRING_CALL               8       0     ack             REPLY_ACK|BACKEND_REQ|INBAND_NOTIFICATIONS
 5  VRING_ERR                8       0     ack             REPLY_ACK|BACKEND_REQ|INBAND_NOTIFICATIONS
 6  SHARED_OBJECT_ADD        16      0     ack             BACKEND_REQ|SHARED_OBJECT
 7  SHARED_OBJECT_REMOVE     16      0     ack             BACKEND_REQ|SHARED_OBJECT
 8  SHARED_OBJECT_LOOKUP     16      0     LookedUpObject  BACKEND_REQ|SHARED_OBJECT
 9  SHMEM_MAP                40      1     ack             BACKEND_REQ|SHMEM
10  SHMEM_UNMAP              40      0     ack             BACKEND_REQ|SHMEM
==  =======================  ======  ====  ==============  ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, BackendMessage, by_number
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import BackendRequest
from protocol.vhost_user.values import IotlbType, MapFlag, Permission
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID


def _requirement(
    bits: ProtocolFeature = ProtocolFeature.NONE, feature: Feature = Feature.NONE
) -> Requirement:
    return Requirement(feature, bits | ProtocolFeature.BACKEND_REQ)


@dataclass(repr=False)
class BackendIotlbMsg(BackendMessage):
    """Report a translation that is missing, or an access that one does not allow."""

    number = BackendRequest.IOTLB_MSG
    payload = payloads.IOTLB
    requirement = _requirement(feature=Feature.ACCESS_PLATFORM)
    iova: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    user_address: int = field(metadata=HEX)
    permission: Permission
    type: IotlbType


class ConfigChange(BackendMessage):
    """Report that the configuration space has changed."""

    number = BackendRequest.CONFIG_CHANGE_MSG
    requirement = _requirement(ProtocolFeature.CONFIG)


@dataclass(repr=False)
class VringHostNotifier(BackendMessage):
    """Have the guest notify hardware itself: `size` bytes from `offset` on of the file that comes along.

    With `no_fd` the notifier is taken away again.
    """

    number = BackendRequest.VRING_HOST_NOTIFIER_MSG
    payload = payloads.VRING_AREA
    fd_counts = (0, 1)
    requirement = _requirement(ProtocolFeature.HOST_NOTIFIER)
    index: int
    no_fd: bool
    size: int = field(metadata=HEX)
    offset: int = field(metadata=HEX)

    def allowed_fds(self) -> Collection[int]:
        """Return none with `no_fd`, otherwise one."""
        return {0 if self.no_fd else 1}


@dataclass(repr=False)
class _VringOnly(BackendMessage):
    payload = payloads.VRING_ONLY
    requirement = _requirement(ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.REPLY_ACK)
    index: int


class VringCall(_VringOnly):
    """Call the driver in-band. Ask for a reply, or sockets fill up."""

    number = BackendRequest.VRING_CALL


class VringErr(_VringOnly):
    """Report a broken ring in-band. Ask for a reply, or sockets fill up."""

    number = BackendRequest.VRING_ERR


@dataclass(repr=False)
class _SharedObject(BackendMessage):
    payload = payloads.SHARED_OBJECT
    requirement = _requirement(ProtocolFeature.SHARED_OBJECT)
    uuid: UUID


class SharedObjectAdd(_SharedObject):
    """Announce an object that other devices may ask this back-end for."""

    number = BackendRequest.SHARED_OBJECT_ADD


class SharedObjectRemove(_SharedObject):
    """Withdraw an object that was announced."""

    number = BackendRequest.SHARED_OBJECT_REMOVE


class SharedObjectLookup(_SharedObject):
    """Ask for the dma-buf of an object that another device has announced."""

    number = BackendRequest.SHARED_OBJECT_LOOKUP
    reply = replies.LookedUpObject


@dataclass(repr=False)
class _Mapping(BackendMessage):
    payload = payloads.MAPPING
    requirement = _requirement(ProtocolFeature.SHMEM)
    shmid: int
    fd_offset: int = field(metadata=HEX)
    shm_offset: int = field(metadata=HEX)
    size: int = field(metadata=HEX)
    flags: MapFlag = MapFlag.READ_ONLY


class ShmemMap(_Mapping):
    """Map `size` bytes of the file that comes along into the guest's shared memory region `shmid`."""

    number = BackendRequest.SHMEM_MAP
    fd_counts = (1,)


class ShmemUnmap(_Mapping):
    """Unmap a whole mapping from the guest's shared memory region `shmid`."""

    number = BackendRequest.SHMEM_UNMAP


BACKEND_REQUESTS = by_number(BackendMessage)
"""The class of every back-end request by its number."""
