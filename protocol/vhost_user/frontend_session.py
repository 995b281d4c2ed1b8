"""The front-end's two ends: making requests of a back-end, and answering the back-end's; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user.messages.backend import BACKEND_REQUESTS
from protocol.vhost_user.negotiation import Negotiation
from protocol.vhost_user.requester import Requester
from protocol.vhost_user.responder import Responder

if TYPE_CHECKING:
    from protocol.vhost_user.features import ProtocolFeature
    from protocol.virtio.features import Feature


class FrontendSession(Requester):
    """A front-end's side of the socket on which it makes its requests of a back-end.

    What the back-end offers is known once GET_FEATURES and GET_PROTOCOL_FEATURES were answered.
    """

    def __init__(self) -> None:
        super().__init__(Negotiation())

    @property
    def negotiation(self) -> Negotiation:
        """What is offered and negotiated."""
        return self._negotiation

    @property
    def features(self) -> Feature:
        """The features that were turned on."""
        return self._negotiation.features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The protocol features that were turned on."""
        return self._negotiation.protocol_features


class FrontendChannel(Responder):
    """A front-end's side of the socket on which the back-end makes its requests."""

    def __init__(self, session: FrontendSession) -> None:
        super().__init__(BACKEND_REQUESTS, session.negotiation)
