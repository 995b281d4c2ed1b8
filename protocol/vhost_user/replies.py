"""The replies of vhost-user that say more than whether a request was done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads
from protocol.vhost_user.message import HEX, Ack, Reply
from protocol.vhost_user.values import MAX_SHARED_MEMORY_REGIONS, ConfigFlag, MemoryRegion

if TYPE_CHECKING:
    from protocol.vhost_user.features import ProtocolFeature
    from protocol.vhost_user.negotiation import Negotiation
    from protocol.virtio.features import Feature
    from protocol.virtio.status import DeviceStatus

_ONE = {1}
_NONE_OR_ONE = {0, 1}


@dataclass(repr=False)
class Features(Reply):
    """The features that the back-end offers."""

    payload = payloads.FEATURES
    features: Feature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Note what is offered."""
        negotiation.offered = self.features


@dataclass(repr=False)
class ProtocolFeatures(Reply):
    """The protocol features that the back-end offers."""

    payload = payloads.PROTOCOL_FEATURES
    features: ProtocolFeature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Note what is offered."""
        negotiation.offered_protocol = self.features


@dataclass(repr=False)
class Number(Reply):
    """How many queues, or memory slots, the back-end supports."""

    payload = payloads.VALUE
    value: int


@dataclass(repr=False)
class Status(Reply):
    """The device status."""

    payload = payloads.STATUS
    status: DeviceStatus


@dataclass(repr=False)
class VringBase(Reply):
    """Where a vring stopped.

    `base` of a split vring is the next available index, free-running in 16 bits. Of a packed one:
    available index in bits 0 to 14, its wrap counter in bit 15, used index in bits 16 to 30, its
    wrap counter in bit 31.
    """

    payload = payloads.VRING_BASE
    index: int
    base: int


@dataclass(repr=False)
class Config(Reply):
    """Bytes of the configuration space: exactly as many as were asked for."""

    payload = payloads.CONFIG
    offset: int
    data: bytes
    flags: ConfigFlag = ConfigFlag.DRIVER


@dataclass(repr=False)
class CryptoSession(Reply):
    """The crypto session's description, with its id set: QEMU's C structure, not taken apart."""

    payload = payloads.RAW
    data: bytes


@dataclass(repr=False)
class UserFault(Reply):
    """The back-end's userfaultfd."""

    fd_counts = _ONE


@dataclass(repr=False)
class Inflight(Reply):
    """Where the memory that tracks in-flight requests is, in the file that comes along."""

    payload = payloads.INFLIGHT
    fd_counts = _ONE
    mmap_size: int = field(metadata=HEX)
    mmap_offset: int = field(metadata=HEX)
    num_queues: int
    queue_size: int


@dataclass(repr=False)
class SharedObject(Reply):
    """The dma-buf of a shared object, or no descriptor where there is none of that UUID."""

    fd_counts = _NONE_OR_ONE

    @property
    def failed(self) -> bool:
        """True where no descriptor came."""
        return not self.fds

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return a failure; success is a descriptor."""
        return super().outcome(True) if ok else cls()


@dataclass(repr=False)
class LookedUpObject(Ack):
    """A front-end's answer to SHARED_OBJECT_LOOKUP: 0 and a dma-buf, or an error."""

    fd_counts = _NONE_OR_ONE


@dataclass(repr=False)
class TransferChannel(Reply):
    """Whether a device's state can be transferred, and over which channel.

    `no_fd` means the channel that the front-end sent; otherwise the back-end's own comes along.
    """

    payload = payloads.TRANSFER_RESULT
    fd_counts = _NONE_OR_ONE
    error: int = 0
    no_fd: bool = True

    def allowed_fds(self) -> set[int]:
        """Return one where the back-end has a channel of its own, none with an error."""
        return {0} if self.no_fd or self.error else _ONE

    @property
    def failed(self) -> bool:
        """True for any error but 0."""
        return self.error != 0

    @classmethod
    def outcome(cls, ok: bool) -> Reply:
        """Return success over the front-end's channel, or failure."""
        return cls(0 if ok else 1)


@dataclass(repr=False)
class SharedMemory(Reply):
    """Sizes in bytes of the device's 256 shared memory regions by their id; 0 where there is none."""

    payload = payloads.SHARED_MEMORY
    sizes: tuple[int, ...] = field(metadata=HEX)

    def __post_init__(self) -> None:
        self.sizes = self.sizes + (0,) * (MAX_SHARED_MEMORY_REGIONS - len(self.sizes))


@dataclass(repr=False)
class MappedTable(Reply):
    """Postcopy: the regions, with the addresses at which the back-end has mapped them."""

    payload = payloads.MEMORY_TABLE
    regions: tuple[MemoryRegion, ...]


@dataclass(repr=False)
class MappedRegion(Reply):
    """Postcopy: the region, with the address at which the back-end has mapped it."""

    payload = payloads.SINGLE_REGION
    region: MemoryRegion
