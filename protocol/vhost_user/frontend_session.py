"""The front-end's two ends: making requests of a back-end, and answering the back-end's; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError
from protocol.vhost_user.backend_messages import BACKEND_REQUESTS
from protocol.vhost_user.migration_messages import PostcopyEnd, PostcopyListen
from protocol.vhost_user.negotiation import Negotiation, lacking_for_inband
from protocol.vhost_user.replies import Features, ProtocolFeatures
from protocol.vhost_user.requester import Requester
from protocol.vhost_user.responder import Responder
from protocol.vhost_user.setup_messages import SetFeatures, SetProtocolFeatures

if TYPE_CHECKING:
    from protocol.vhost_user.features import ProtocolFeature
    from protocol.vhost_user.message import Reply, Request
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

    def _sent(self, request: Request) -> None:
        try:
            if isinstance(request, SetFeatures):
                self._negotiation.set_features(request.features)
            elif isinstance(request, SetProtocolFeatures):
                self._set_protocol_features(request.features)
            elif isinstance(request, PostcopyListen | PostcopyEnd):
                self._negotiation.postcopy = isinstance(request, PostcopyListen)
        except ValueError as error:
            raise LocalProtocolError(f"{request.label}: {error}") from None

    def _set_protocol_features(self, features: ProtocolFeature) -> None:
        if lacking := lacking_for_inband(features):
            raise LocalProtocolError(f"INBAND_NOTIFICATIONS needs {lacking}, too")
        self._negotiation.set_protocol_features(features)

    def _replied(self, reply: Reply) -> None:
        if isinstance(reply, Features):
            self._negotiation.offered = reply.features
        elif isinstance(reply, ProtocolFeatures):
            self._negotiation.offered_protocol = reply.features


class FrontendChannel(Responder):
    """A front-end's side of the socket on which the back-end makes its requests."""

    def __init__(self, session: FrontendSession) -> None:
        super().__init__(BACKEND_REQUESTS, session.negotiation)
