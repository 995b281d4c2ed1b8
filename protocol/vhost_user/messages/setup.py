"""Requests of a front-end: features, ownership, status, configuration space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.vhost_user import payloads, replies
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import FrontendMessage, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.values import (
    ConfigFlag,
)
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user.negotiation import Negotiation
    from protocol.virtio.status import DeviceStatus


class GetFeatures(FrontendMessage):
    """Ask for the features that the back-end offers; also a barrier, at any time."""

    number = FrontendRequest.GET_FEATURES
    reply = replies.Features


@dataclass(repr=False)
class SetFeatures(FrontendMessage):
    """Turn features on. Without PROTOCOL_FEATURES it enables all rings."""

    number = FrontendRequest.SET_FEATURES
    payload = payloads.FEATURES
    features: Feature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Turn them on. Raises ValueError if some were not offered."""
        negotiation.set_features(self.features)


class GetProtocolFeatures(FrontendMessage):
    """Ask for the protocol features that the back-end offers."""

    number = FrontendRequest.GET_PROTOCOL_FEATURES
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    reply = replies.ProtocolFeatures


@dataclass(repr=False)
class SetProtocolFeatures(FrontendMessage):
    """Turn protocol features on."""

    number = FrontendRequest.SET_PROTOCOL_FEATURES
    payload = payloads.PROTOCOL_FEATURES
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    features: ProtocolFeature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Turn them on. Raises ValueError if some were not offered or do not go together."""
        negotiation.set_protocol_features(self.features)


class SetOwner(FrontendMessage):
    """Begin a session."""

    number = FrontendRequest.SET_OWNER


class ResetOwner(FrontendMessage):
    """Deprecated: disable all rings, and keep what was negotiated."""

    number = FrontendRequest.RESET_OWNER


class ResetDevice(FrontendMessage):
    """Disable all rings and reset the device's state; what was negotiated stays."""

    number = FrontendRequest.RESET_DEVICE
    requirement = Requirement(protocol=ProtocolFeature.RESET_DEVICE)


@dataclass(repr=False)
class SetStatus(FrontendMessage):
    """Tell the device status that the driver has set."""

    number = FrontendRequest.SET_STATUS
    payload = payloads.STATUS
    requirement = Requirement(protocol=ProtocolFeature.STATUS)
    status: DeviceStatus


class GetStatus(FrontendMessage):
    """Ask for the device status."""

    number = FrontendRequest.GET_STATUS
    requirement = Requirement(protocol=ProtocolFeature.STATUS)
    reply = replies.Status


class GetQueueNum(FrontendMessage):
    """Ask how many queues the back-end supports."""

    number = FrontendRequest.GET_QUEUE_NUM
    requirement = Requirement(protocol=ProtocolFeature.MQ, offered=True)
    reply = replies.Number


class SetBackendReqFd(FrontendMessage):
    """Pass the socket for the back-end's own requests."""

    number = FrontendRequest.SET_BACKEND_REQ_FD
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.BACKEND_REQ, offered=True)


@dataclass(repr=False)
class GetConfig(FrontendMessage):
    """Ask for `size` bytes of the configuration space from `offset` on."""

    number = FrontendRequest.GET_CONFIG
    payload = payloads.CONFIG_QUERY
    requirement = Requirement(protocol=ProtocolFeature.CONFIG)
    reply = replies.Config
    offset: int
    size: int
    flags: ConfigFlag = ConfigFlag.DRIVER

    def is_answered_by(self, reply: Reply) -> bool:
        """Return whether `reply` is of the very bytes that were asked for."""
        return isinstance(reply, replies.Config) and (reply.offset, len(reply.data)) == (
            self.offset,
            self.size,
        )


@dataclass(repr=False)
class SetConfig(FrontendMessage):
    """Write to the configuration space from `offset` on."""

    number = FrontendRequest.SET_CONFIG
    payload = payloads.CONFIG
    requirement = Requirement(protocol=ProtocolFeature.CONFIG)
    offset: int
    data: bytes
    flags: ConfigFlag = ConfigFlag.DRIVER
