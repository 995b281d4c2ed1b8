"""Requests of a front-end: migration, and back-ends that start anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.values import (
    MigrationPhase,
    TransferDirection,
)

if TYPE_CHECKING:
    from protocol.vhost_user.negotiation import Negotiation


@dataclass(repr=False)
class SetLogBase(FrontendMessage):
    """Set the dirty log: `size` bytes from `offset` on, in the file that comes along."""

    number = FrontendRequest.SET_LOG_BASE
    payload = payloads.LOG
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.LOG_SHMFD)
    always_replied = True
    size: int = field(metadata=HEX)
    offset: int = field(metadata=HEX)


class SetLogFd(FrontendMessage):
    """Set an eventfd to signal when the dirty log has changed."""

    number = FrontendRequest.SET_LOG_FD
    fd_counts = (1,)


@dataclass(repr=False)
class GetInflightFd(FrontendMessage):
    """Ask for memory to track in-flight requests in, for so many queues of this size."""

    number = FrontendRequest.GET_INFLIGHT_FD
    payload = payloads.INFLIGHT
    requirement = Requirement(protocol=ProtocolFeature.INFLIGHT_SHMFD)
    reply = replies.Inflight
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class SetInflightFd(FrontendMessage):
    """Give the memory back in which in-flight requests are tracked, also to a back-end started anew."""

    number = FrontendRequest.SET_INFLIGHT_FD
    payload = payloads.INFLIGHT
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.INFLIGHT_SHMFD)
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class SetDeviceStateFd(FrontendMessage):
    """Begin to save or load the device's own state, over the channel that comes along."""

    number = FrontendRequest.SET_DEVICE_STATE_FD
    payload = payloads.TRANSFER
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.DEVICE_STATE)
    reply = replies.TransferChannel
    direction: TransferDirection
    phase: MigrationPhase = MigrationPhase.STOPPED


class CheckDeviceState(FrontendMessage):
    """Ask, after the transfer, whether the device's state was saved or loaded as a whole."""

    number = FrontendRequest.CHECK_DEVICE_STATE
    requirement = Requirement(protocol=ProtocolFeature.DEVICE_STATE)
    always_replied = True


class PostcopyAdvise(FrontendMessage):
    """Ask for a userfaultfd: a postcopy migration may come."""

    number = FrontendRequest.POSTCOPY_ADVISE
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)
    reply = replies.UserFault


class PostcopyListen(FrontendMessage):
    """Postcopy begins: memory has to be registered with the userfaultfd."""

    number = FrontendRequest.POSTCOPY_LISTEN
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)

    def negotiate(self, negotiation: Negotiation) -> None:
        """From now on, memory tables are answered with addresses."""
        negotiation.postcopy = True


class PostcopyEnd(FrontendMessage):
    """Postcopy is over: close the userfaultfd."""

    number = FrontendRequest.POSTCOPY_END
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)
    always_replied = True

    def negotiate(self, negotiation: Negotiation) -> None:
        """From now on, memory tables are answered as ever."""
        negotiation.postcopy = False
