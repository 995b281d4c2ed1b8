"""Messages for setting up: features, owner, status, reset, configuration space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from construct import Bytes, Int32un, Padding, Rebuild, Struct, Terminated, len_, this

from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.message import FrontendMessage, Number, Reply
from protocol.vhost_user.negotiation import Requirement
from protocol.vhost_user.numbers import FrontendRequest
from protocol.vhost_user.payload import Payload, typed, word
from protocol.virtio.bits import Bits
from protocol.virtio.features import DeviceStatus, Feature

if TYPE_CHECKING:
    from protocol.vhost_user.negotiation import Negotiation

MAX_CONFIG_SIZE = 256
"""Most bytes of configuration space in one message."""


class ConfigFlag(Bits):
    """Flags of GET_CONFIG and SET_CONFIG: who changes the configuration space."""

    DRIVER = 0
    MIGRATION = 1
    """Live migration restores it, with the fields that are read-only to the driver."""


def _config_size(size: int) -> int:
    if size > MAX_CONFIG_SIZE:
        raise ValueError(f"{size} bytes of configuration space are more than {MAX_CONFIG_SIZE}")
    return size


_FEATURES = word("features", Feature)
_PROTOCOL_FEATURES = word("features", ProtocolFeature)
_STATUS = word("status", DeviceStatus)
_CONFIG_SIZES = range(12, 12 + MAX_CONFIG_SIZE + 1)
_CONFIG = Payload(
    "configuration space",
    Struct(
        "offset" / Int32un,
        "size" / Rebuild(Int32un, len_(this.data)),
        "flags" / typed(Int32un, ConfigFlag),
        "data" / Bytes(this.size),
        Terminated,
    ),
    _CONFIG_SIZES,
)


@dataclass(repr=False)
class Features(Reply):
    """The features that the back-end offers."""

    payload = _FEATURES
    features: Feature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Record the offer."""
        negotiation.offered = self.features


class GetFeatures(FrontendMessage):
    """Ask for the features that the back-end offers; also a barrier, at any time."""

    number = FrontendRequest.GET_FEATURES
    reply = Features


@dataclass(repr=False)
class SetFeatures(FrontendMessage):
    """Turn features on. Without PROTOCOL_FEATURES it enables all rings."""

    number = FrontendRequest.SET_FEATURES
    payload = _FEATURES
    features: Feature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Turn them on. Raises ValueError if some were not offered."""
        negotiation.set_features(self.features)


@dataclass(repr=False)
class ProtocolFeatures(Reply):
    """The protocol features that the back-end offers."""

    payload = _PROTOCOL_FEATURES
    features: ProtocolFeature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Record the offer."""
        negotiation.offered_protocol = self.features


class GetProtocolFeatures(FrontendMessage):
    """Ask for the protocol features that the back-end offers."""

    number = FrontendRequest.GET_PROTOCOL_FEATURES
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    reply = ProtocolFeatures


@dataclass(repr=False)
class SetProtocolFeatures(FrontendMessage):
    """Turn protocol features on."""

    number = FrontendRequest.SET_PROTOCOL_FEATURES
    payload = _PROTOCOL_FEATURES
    requirement = Requirement(Feature.PROTOCOL_FEATURES, offered=True)
    features: ProtocolFeature

    def negotiate(self, negotiation: Negotiation) -> None:
        """Turn them on. Raises ValueError if some were not offered or do not go together."""
        negotiation.set_protocol_features(self.features)


class SetOwner(FrontendMessage):
    """Begin a session."""

    number = FrontendRequest.SET_OWNER


class ResetOwner(FrontendMessage):
    """Deprecated: disable all rings; negotiated features stay."""

    number = FrontendRequest.RESET_OWNER


class ResetDevice(FrontendMessage):
    """Disable all rings and reset the device's state; negotiated features stay."""

    number = FrontendRequest.RESET_DEVICE
    requirement = Requirement(protocol=ProtocolFeature.RESET_DEVICE)


@dataclass(repr=False)
class SetStatus(FrontendMessage):
    """Pass on the device status that the driver has set."""

    number = FrontendRequest.SET_STATUS
    payload = _STATUS
    requirement = Requirement(protocol=ProtocolFeature.STATUS)
    status: DeviceStatus


@dataclass(repr=False)
class Status(Reply):
    """The device status."""

    payload = _STATUS
    status: DeviceStatus


class GetStatus(FrontendMessage):
    """Ask for the device status."""

    number = FrontendRequest.GET_STATUS
    requirement = Requirement(protocol=ProtocolFeature.STATUS)
    reply = Status


class GetQueueNum(FrontendMessage):
    """Ask how many queues the back-end supports."""

    number = FrontendRequest.GET_QUEUE_NUM
    requirement = Requirement(protocol=ProtocolFeature.MQ, offered=True)
    reply = Number


class SetBackendReqFd(FrontendMessage):
    """Pass the socket for the back-end's own requests."""

    number = FrontendRequest.SET_BACKEND_REQ_FD
    fd_counts = (1,)
    requirement = Requirement(protocol=ProtocolFeature.BACKEND_REQ, offered=True)


@dataclass(repr=False)
class Config(Reply):
    """Bytes of the configuration space: exactly as many as the request asks for."""

    payload = _CONFIG
    offset: int
    data: bytes
    flags: ConfigFlag = ConfigFlag.DRIVER


@dataclass(repr=False)
class GetConfig(FrontendMessage):
    """Ask for `size` bytes of the configuration space from `offset` on."""

    number = FrontendRequest.GET_CONFIG
    payload = Payload(
        "configuration space",
        Struct(
            "offset" / Int32un,
            "size" / typed(Int32un, _config_size, _config_size),
            "flags" / typed(Int32un, ConfigFlag),
            Padding(this.size),
            Terminated,
        ),
        _CONFIG_SIZES,
    )
    requirement = Requirement(protocol=ProtocolFeature.CONFIG)
    reply = Config
    offset: int
    size: int
    flags: ConfigFlag = ConfigFlag.DRIVER

    def is_answered_by(self, reply: Reply) -> bool:
        """Return whether `reply` has exactly the bytes that this request asks for."""
        asked = (self.offset, self.size)
        return isinstance(reply, Config) and (reply.offset, len(reply.data)) == asked


@dataclass(repr=False)
class SetConfig(FrontendMessage):
    """Write to the configuration space from `offset` on."""

    number = FrontendRequest.SET_CONFIG
    payload = _CONFIG
    requirement = Requirement(protocol=ProtocolFeature.CONFIG)
    offset: int
    data: bytes
    flags: ConfigFlag = ConfigFlag.DRIVER
