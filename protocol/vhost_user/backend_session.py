"""The back-end's two ends: answering its front-end, and making requests of it; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError
from protocol.vhost_user.frontend_messages import FRONTEND_REQUESTS
from protocol.vhost_user.negotiation import Negotiation
from protocol.vhost_user.requester import Requester
from protocol.vhost_user.responder import Responder
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user.features import ProtocolFeature


class BackendSession(Responder):
    """A back-end's side of the socket on which a front-end makes its requests.

    It keeps what was negotiated; everything else that a request says is for whoever takes it.
    """

    def __init__(self, features: Feature, protocol_features: ProtocolFeature) -> None:
        """Offer `features` (with PROTOCOL_FEATURES) and `protocol_features`."""
        if protocol_features and Feature.PROTOCOL_FEATURES not in features:
            raise LocalProtocolError(
                "protocol features can be offered only with the feature PROTOCOL_FEATURES"
            )
        super().__init__(FRONTEND_REQUESTS, Negotiation(features, protocol_features))

    @property
    def negotiation(self) -> Negotiation:
        """What is offered and negotiated."""
        return self._negotiation

    @property
    def features(self) -> Feature:
        """The features that the front-end has turned on."""
        return self._negotiation.features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The protocol features that the front-end has turned on."""
        return self._negotiation.protocol_features


class BackendChannel(Requester):
    """A back-end's side of the socket on which it makes requests of its front-end.

    A front-end that waits for a reply of ours does not read this socket. So whoever handles a
    request of the front-end's must not wait here before having answered it: see `may_wait`.
    """

    def __init__(self, session: BackendSession) -> None:
        super().__init__(session.negotiation)
        self._session = session

    @property
    def may_wait(self) -> bool:
        """True unless the front-end waits for us: waiting for it now would wait for ever."""
        return not self._session.owed
