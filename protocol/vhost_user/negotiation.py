"""The features that two sides have negotiated, and those that a request requires."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.vhost_user.features import ProtocolFeature
from protocol.virtio.features import Feature

_INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK

ALWAYS_ACCEPTED = (
    Feature.NOTIFY_ON_EMPTY
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.RING_RESET
)
"""Features that a front-end may turn on although the back-end did not offer them.

QEMU's rng and i2c (7.2) pass on the features that the driver accepted of QEMU's own offer, whatever the
back-end offered. The driver relies on them, so a back-end has to follow. RING_RESET needs nothing from it.
"""


@dataclass(frozen=True)
class Requirement:
    """Features that must have been negotiated before a request may be sent; by default none."""

    feature: Feature = Feature.NONE
    protocol: ProtocolFeature = ProtocolFeature.NONE
    offered: bool = False
    """True where the back-end's offer is enough."""

    def __str__(self) -> str:
        return " and ".join(str(bits) for bits in (self.feature, self.protocol) if bits) or "nothing"


class UnusableError(ValueError):
    """Features were turned on that exclude each other: the connection must end."""


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
        """True if memory regions have the fields of XEN_MMAP."""
        return ProtocolFeature.XEN_MMAP in self.protocol_features

    def missing(self, requirement: Requirement) -> str:
        """Return the features of `requirement` that were not negotiated, as text; "" if all were."""
        if not requirement.feature and not requirement.protocol:
            return ""
        features, protocol = self.features, self.protocol_features
        if requirement.offered:
            features, protocol = self.offered, self.offered_protocol
        features, protocol = requirement.feature.without(features), requirement.protocol.without(protocol)
        return " and ".join(str(bits) for bits in (features, protocol) if bits)

    def set_features(self, features: Feature) -> None:
        """Turn features on. Raises ValueError if some were not offered; nothing changes then."""
        if unknown := features.without(self.offered | ALWAYS_ACCEPTED):
            raise ValueError(f"features {unknown} were not offered")
        self.features = features

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """Turn protocol features on.

        Raises ValueError if some were not offered, and UnusableError for in-band notifications without
        the features that they need; nothing changes then.
        """
        if unknown := features.without(self.offered_protocol):
            raise ValueError(f"protocol features {unknown} were not offered")
        if ProtocolFeature.INBAND_NOTIFICATIONS in features and (lacking := _INBAND_NEEDS.without(features)):
            raise UnusableError(f"INBAND_NOTIFICATIONS was turned on without {lacking}")
        self.protocol_features = features


class ObservedNegotiation(Negotiation):
    """The negotiation of two others, by an observer that can refuse nothing."""

    def set_features(self, features: Feature) -> None:
        """Record the features in any case. Raises ValueError as Negotiation does."""
        self.features = features
        super().set_features(features)

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """Record the features in any case. Raises ValueError as Negotiation does."""
        self.protocol_features = features
        super().set_protocol_features(features)
