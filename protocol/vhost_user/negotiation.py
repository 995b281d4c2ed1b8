"""What two sides have agreed on, and what that permits them to send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.vhost_user.features import ProtocolFeature
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user.message import Gate, Reply, Request

_INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK

ALWAYS_ACCEPTED = (
    Feature.NOTIFY_ON_EMPTY
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.RING_RESET
)
"""Features that a front-end may turn on although the back-end did not offer them.

QEMU's rng and i2c (7.2) pass on what the driver accepted of QEMU's own offer, whatever the back-end
offered. The driver relies on it, so a back-end has to do as they say. RING_RESET needs nothing of it.
"""


class UnusableError(ValueError):
    """Features were turned on together that cannot be: the connection must not go on."""


@dataclass
class Negotiation:
    """Offered and negotiated features of one connection, both of its sockets."""

    offered: Feature = Feature.NONE
    offered_protocol: ProtocolFeature = ProtocolFeature.NONE
    features: Feature = Feature.NONE
    protocol_features: ProtocolFeature = ProtocolFeature.NONE
    postcopy: bool = False
    """True between POSTCOPY_LISTEN and POSTCOPY_END."""

    @property
    def xen(self) -> bool:
        """True where memory regions have the fields of XEN_MMAP."""
        return ProtocolFeature.XEN_MMAP in self.protocol_features

    def missing(self, gate: Gate) -> str:
        """Return what of `gate` was not negotiated (or offered, if that is enough), empty for nothing."""
        features = gate.feature.without(self.offered if gate.offered else self.features)
        protocol = gate.protocol.without(self.offered_protocol if gate.offered else self.protocol_features)
        return " and ".join(str(bits) for bits in (features, protocol) if bits)

    def set_features(self, features: Feature) -> None:
        """Turn features on. Raises ValueError for some that were not offered; nothing changes then."""
        if unknown := features.without(self.offered | ALWAYS_ACCEPTED):
            raise ValueError(f"features {unknown} were not offered")
        self.features = features

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """Turn protocol features on.

        Raises ValueError for some that were not offered, and UnusableError for in-band notifications
        without what they need; nothing changes then.
        """
        if unknown := features.without(self.offered_protocol):
            raise ValueError(f"protocol features {unknown} were not offered")
        if ProtocolFeature.INBAND_NOTIFICATIONS in features and (lacking := _INBAND_NEEDS.without(features)):
            raise UnusableError(f"INBAND_NOTIFICATIONS was turned on without {lacking}")
        self.protocol_features = features

    def reply_type(self, request: Request) -> type[Reply]:
        """Return the class of what answers `request` now."""
        return (request.postcopy_reply if self.postcopy else None) or request.reply

    def is_replied(self, request: Request) -> bool:
        """Return whether `request` is answered now."""
        if self.postcopy and request.postcopy_reply is not None:
            return 0 not in request.allowed_fds()  # one that maps nothing acknowledges such a reply
        if request.is_always_replied():
            return True
        return request.need_reply and ProtocolFeature.REPLY_ACK in self.protocol_features


class Onlooker(Negotiation):
    """What somebody knows who sees both sides talk, and can refuse nothing."""

    def set_features(self, features: Feature) -> None:
        """Note what was turned on. Raises as a negotiation does, but notes it all the same."""
        self.features = features
        super().set_features(features)

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """Note what was turned on. Raises as a negotiation does, but notes it all the same."""
        self.protocol_features = features
        super().set_protocol_features(features)
