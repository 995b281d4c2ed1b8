"""Requests of a front-end: rings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import HEX, FrontendMessage, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Collection

    from protocol.vhost_user.values import (
        VringAddressFlag,
    )


@dataclass(repr=False)
class _VringFd(FrontendMessage):
    """`no_fd` says that no descriptor comes along."""

    payload = payloads.VRING_FD
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
    payload = payloads.VRING_STATE
    index: int
    num: int


@dataclass(repr=False)
class SetVringAddr(FrontendMessage):
    """Set the user addresses (with an IOMMU the I/O virtual addresses) of a ring's parts."""

    number = FrontendRequest.SET_VRING_ADDR
    payload = payloads.VRING_ADDRESS
    index: int
    flags: VringAddressFlag
    descriptor: int = field(metadata=HEX)
    used: int = field(metadata=HEX)
    available: int = field(metadata=HEX)
    log: int = field(default=0, metadata=HEX)


@dataclass(repr=False)
class SetVringBase(FrontendMessage):
    """Set where a ring goes on; `base` is as in the reply to GetVringBase."""

    number = FrontendRequest.SET_VRING_BASE
    payload = payloads.VRING_BASE
    index: int
    base: int


@dataclass(repr=False)
class GetVringBase(FrontendMessage):
    """Stop a ring, once what is under way is done, and ask where it stopped."""

    number = FrontendRequest.GET_VRING_BASE
    payload = payloads.VRING_ONLY
    reply = replies.VringBase
    index: int

    def is_answered_by(self, reply: Reply) -> bool:
        """Return whether `reply` is of the same ring."""
        return isinstance(reply, replies.VringBase) and reply.index == self.index


class GetVringBaseSkipDrain(GetVringBase):
    """Stop a ring at once, with what is under way kept as in-flight, and ask where it stopped."""

    number = FrontendRequest.GET_VRING_BASE_SKIP_DRAIN
    requirement = Requirement(
        protocol=ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
        | ProtocolFeature.GET_VRING_BASE_INFLIGHT
        | ProtocolFeature.INFLIGHT_SHMFD
    )


class SetVringKick(_VringFd):
    """Start a ring: the eventfd by which the driver kicks it, or `no_fd` for polling."""

    number = FrontendRequest.SET_VRING_KICK


class SetVringCall(_VringFd):
    """Set the eventfd by which the back-end calls the driver, or `no_fd` for none."""

    number = FrontendRequest.SET_VRING_CALL


class SetVringErr(_VringFd):
    """Set the eventfd by which the back-end reports a broken ring, or `no_fd` for none."""

    number = FrontendRequest.SET_VRING_ERR


@dataclass(repr=False)
class SetVringEnable(FrontendMessage):
    """Enable or disable a ring."""

    number = FrontendRequest.SET_VRING_ENABLE
    payload = payloads.VRING_ENABLE
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    index: int
    enable: bool


@dataclass(repr=False)
class SetVringEndian(FrontendMessage):
    """Set the byte order of a legacy driver's ring."""

    number = FrontendRequest.SET_VRING_ENDIAN
    payload = payloads.VRING_ENDIAN
    requirement = Requirement(protocol=ProtocolFeature.CROSS_ENDIAN)
    index: int
    big: bool


@dataclass(repr=False)
class VringKick(FrontendMessage):
    """Kick a ring in-band; it starts one that has no kick eventfd. Ask for a reply, or sockets fill up."""

    number = FrontendRequest.VRING_KICK
    payload = payloads.VRING_ONLY
    requirement = Requirement(
        protocol=ProtocolFeature.INBAND_NOTIFICATIONS
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.REPLY_ACK
    )
    index: int
