"""Messages about vrings: size, addresses, place, notification, start and stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from construct import Int32un, Int64un, Rebuild, Struct

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.payload import FdWord, Payload, typed
from protocol.virtio.bits import Bits
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection

VRING_ONLY = Payload("vring state", Struct("index" / Int32un, "num" / Rebuild(Int32un, 0)), {8})
_VRING_BASE = Payload("vring state", Struct("index" / Int32un, "base" / Int32un), {8})


class VringAddressFlag(Bits):
    """Flags of SET_VRING_ADDR."""

    NONE = 0
    LOG = 1
    """Log writes to the used ring, at the message's log address."""


def _is_big_endian(number: int) -> bool:
    if number > 1:
        raise ValueError(f"{number} is not a byte order: 0 is little-endian, 1 is big-endian")
    return bool(number)


@dataclass(repr=False)
class _VringFd(FrontendMessage):
    """A message with a ring's descriptor; with `no_fd` it has none."""

    payload = Payload("u64", FdWord("index"), {8})
    fd_counts = (0, 1)
    index: int
    no_fd: bool = False

    def allowed_fds(self) -> Collection[int]:
        """Return none with `no_fd`, otherwise one."""
        return {0 if self.no_fd else 1}


@dataclass(repr=False)
class SetVringNum(FrontendMessage):
    """Set the size of a ring, in descriptors."""

    number = FrontendRequest.SET_VRING_NUM
    payload = Payload("vring state", Struct("index" / Int32un, "num" / Int32un), {8})
    index: int
    num: int


@dataclass(repr=False)
class SetVringAddr(FrontendMessage):
    """Set the user addresses (with an IOMMU the I/O virtual addresses) of a ring's parts."""

    number = FrontendRequest.SET_VRING_ADDR
    payload = Payload(
        "vring address",
        Struct(
            "index" / Int32un,
            "flags" / typed(Int32un, VringAddressFlag),
            "descriptor" / Int64un,
            "used" / Int64un,
            "available" / Int64un,
            "log" / Int64un,
        ),
        {40},
    )
    index: int
    flags: VringAddressFlag
    descriptor: int = field(metadata=HEX)
    used: int = field(metadata=HEX)
    available: int = field(metadata=HEX)
    log: int = field(default=0, metadata=HEX)


@dataclass(repr=False)
class SetVringBase(FrontendMessage):
    """Set where a ring goes on; `base` is as in `VringBase`."""

    number = FrontendRequest.SET_VRING_BASE
    payload = _VRING_BASE
    index: int
    base: int


@dataclass(repr=False)
class VringBase(Reply):
    """Where a vring stopped.

    `base` of a split vring is the next available index, free-running in 16 bits. Of a packed one:
    available index in bits 0 to 14, its wrap counter in bit 15, used index in bits 16 to 30, its
    wrap counter in bit 31.
    """

    payload = _VRING_BASE
    index: int
    base: int


@dataclass(repr=False)
class GetVringBase(FrontendMessage):
    """Stop a ring after the requests under way are done, and ask where it stopped."""

    number = FrontendRequest.GET_VRING_BASE
    payload = VRING_ONLY
    reply = VringBase
    index: int

    def is_answered_by(self, reply: Reply) -> bool:
        """Return whether `reply` is of the same ring."""
        return isinstance(reply, VringBase) and reply.index == self.index


class GetVringBaseSkipDrain(GetVringBase):
    """Stop a ring at once, with the requests under way left in flight, and ask where it stopped."""

    number = FrontendRequest.GET_VRING_BASE_SKIP_DRAIN
    requirement = Requirement(
        protocol=ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
        | ProtocolFeature.GET_VRING_BASE_INFLIGHT
        | ProtocolFeature.INFLIGHT_SHMFD
    )


class SetVringKick(_VringFd):
    """Start a ring, with the eventfd by which the driver kicks it; with `no_fd` the ring is polled."""

    number = FrontendRequest.SET_VRING_KICK


class SetVringCall(_VringFd):
    """Set the eventfd by which the back-end calls the driver; with `no_fd` there is none."""

    number = FrontendRequest.SET_VRING_CALL


class SetVringErr(_VringFd):
    """Set the eventfd by which the back-end reports a broken ring; with `no_fd` there is none."""

    number = FrontendRequest.SET_VRING_ERR


@dataclass(repr=False)
class SetVringEnable(FrontendMessage):
    """Enable or disable a ring."""

    number = FrontendRequest.SET_VRING_ENABLE
    payload = Payload("vring state", Struct("index" / Int32un, "enable" / typed(Int32un, bool)), {8})
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    index: int
    enable: bool


@dataclass(repr=False)
class SetVringEndian(FrontendMessage):
    """Set the byte order of a legacy driver's ring."""

    number = FrontendRequest.SET_VRING_ENDIAN
    payload = Payload("vring state", Struct("index" / Int32un, "big" / typed(Int32un, _is_big_endian)), {8})
    requirement = Requirement(protocol=ProtocolFeature.CROSS_ENDIAN)
    index: int
    big: bool


@dataclass(repr=False)
class VringKick(FrontendMessage):
    """Kick a ring in-band; a ring without a kick eventfd starts. Ask for a reply, or sockets fill up."""

    number = FrontendRequest.VRING_KICK
    payload = VRING_ONLY
    requirement = Requirement(
        protocol=ProtocolFeature.INBAND_NOTIFICATIONS
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.REPLY_ACK
    )
    index: int
