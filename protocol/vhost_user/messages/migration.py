"""Messages for migration and restarts: dirty log, in-flight, state, postcopy."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from construct import Const, Int16un, Int32un, Int64un, Optional, Struct

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.payload import FdWord, Payload, typed

if TYPE_CHECKING:
    from protocol.vhost_user.negotiation import Negotiation

_INFLIGHT = Payload(
    "inflight",
    Struct(
        "mmap_size" / Int64un,
        "mmap_offset" / Int64un,
        "num_queues" / Int16un,
        "queue_size" / Int16un,
        Optional(Const(bytes(4))),
    ),
    {20, 24},
)


class TransferDirection(IntEnum):
    """Whether SET_DEVICE_STATE_FD saves or loads the device's state."""

    SAVE = 0
    LOAD = 1


class MigrationPhase(IntEnum):
    """When the device's state is transferred."""

    STOPPED = 0


@dataclass(repr=False)
class SetLogBase(FrontendMessage):
    """Set the dirty log: `size` bytes from `offset` on, in the file that is the message's descriptor."""

    number = FrontendRequest.SET_LOG_BASE
    payload = Payload("log", Struct("size" / Int64un, "offset" / Int64un), {16})
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
class Inflight(Reply):
    """The place of the memory that tracks in-flight requests, in the file that is its descriptor."""

    payload = _INFLIGHT
    fd_counts = (1,)
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class GetInflightFd(FrontendMessage):
    """Ask for memory that tracks in-flight requests, for `num_queues` queues of `queue_size`."""

    number = FrontendRequest.GET_INFLIGHT_FD
    payload = _INFLIGHT
    requirement = Requirement(protocol=ProtocolFeature.INFLIGHT_SHMFD)
    reply = Inflight
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class SetInflightFd(FrontendMessage):
    """Pass the memory that tracks in-flight requests; a back-end that was restarted gets it again."""

    number = FrontendRequest.SET_INFLIGHT_FD
    payload = _INFLIGHT
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.INFLIGHT_SHMFD)
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class TransferChannel(Reply):
    """Whether a device's state can be transferred, and over which channel.

    With `no_fd` over the channel that the front-end sent; otherwise over the reply's descriptor.
    """

    payload = Payload("u64", FdWord("error"), {8})
    fd_counts = (0, 1)
    error: int = 0
    no_fd: bool = True

    def allowed_fds(self) -> set[int]:
        """Return one where the back-end has a channel of its own, none with an error."""
        return {0 if self.no_fd or self.error else 1}

    @property
    def failed(self) -> bool:
        """True for any error but 0."""
        return self.error != 0

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return success over the front-end's channel, or failure."""
        return cls(0 if ok else 1)


@dataclass(repr=False)
class SetDeviceStateFd(FrontendMessage):
    """Begin to save or load the device's own state, over the channel that is the message's descriptor."""

    number = FrontendRequest.SET_DEVICE_STATE_FD
    payload = Payload(
        "device state transfer",
        Struct("direction" / typed(Int32un, TransferDirection), "phase" / typed(Int32un, MigrationPhase)),
        {8},
    )
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.DEVICE_STATE)
    reply = TransferChannel
    direction: TransferDirection
    phase: MigrationPhase = MigrationPhase.STOPPED


class CheckDeviceState(FrontendMessage):
    """Ask, after the transfer, whether the device's whole state was saved or loaded."""

    number = FrontendRequest.CHECK_DEVICE_STATE
    requirement = Requirement(protocol=ProtocolFeature.DEVICE_STATE)
    always_replied = True


@dataclass(repr=False)
class UserFault(Reply):
    """The back-end's userfaultfd."""

    fd_counts = (1,)


class PostcopyAdvise(FrontendMessage):
    """Ask for a userfaultfd: a postcopy migration may follow."""

    number = FrontendRequest.POSTCOPY_ADVISE
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)
    reply = UserFault


class PostcopyListen(FrontendMessage):
    """Postcopy begins: memory has to be registered with the userfaultfd."""

    number = FrontendRequest.POSTCOPY_LISTEN
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)

    def negotiate(self, negotiation: Negotiation) -> None:
        """Record that memory tables are answered with addresses from now on."""
        negotiation.postcopy = True


class PostcopyEnd(FrontendMessage):
    """Postcopy is over: close the userfaultfd."""

    number = FrontendRequest.POSTCOPY_END
    requirement = Requirement(protocol=ProtocolFeature.PAGEFAULT)
    always_replied = True

    def negotiate(self, negotiation: Negotiation) -> None:
        """Record that memory tables are answered as usual from now on."""
        negotiation.postcopy = False
