"""The sessions of a vhost-user connection: each side's two ends, of both sockets; no I/O.

How it works. A connection has two sockets. On the first the front-end makes requests (`FrontendSession`)
and the back-end answers (`BackendSession`); on the second, which SET_BACKEND_REQ_FD passed, the back-end
makes requests (`BackendChannel`) and the front-end answers (`FrontendChannel`). The two ends of one side
share one `Negotiation`: a feature that is turned on over the first socket permits requests on the second.

Order: on each socket, replies come in the order of their requests; no reply names its request but by
that order and its number. A front-end that waits for a reply on the first socket does not read the
second one, so a back-end sends the replies that it owes before it waits on the second: see `may_wait`.

Descriptors: bytes and descriptors go in by `receive()`, which owns the descriptors from then on, also
where it raises. The event that it returns owns those that came with it, until they are taken out or it is
closed. Outgoing packets hold plain numbers: descriptors stay their sender's, who closes them when the
packet was sent.

Resets: RESET_OWNER, RESET_DEVICE and status 0 change nothing here; features last as long as the
connection. A session that raised RemoteProtocolError is broken: it holds no descriptor, and raises again
at each call. A new connection takes new sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import LocalProtocolError
from protocol.vhost_user.messages import BACKEND_REQUESTS, FRONTEND_REQUESTS
from protocol.vhost_user.negotiation import Negotiation
from protocol.vhost_user.requester import Requester
from protocol.vhost_user.responder import Responder
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user.features import ProtocolFeature


class BackendSession(Responder):
    """A back-end's end of the first socket: it answers the front-end's requests.

    It records the negotiation; the caller acts on all other requests.
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
        """The features offered and negotiated."""
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
    """A back-end's end of the second socket: it makes requests of its front-end.

    A front-end that waits for a reply does not read this socket: the handler of a front-end's request
    answers it before it waits here; see `may_wait`.
    """

    def __init__(self, session: BackendSession) -> None:
        super().__init__(session.negotiation)
        self._session = session

    @property
    def may_wait(self) -> bool:
        """False while the front-end waits for a reply: to wait for it now would be to wait for ever."""
        return not self._session.owed


class FrontendSession(Requester):
    """A front-end's end of the first socket: it makes requests of a back-end.

    The back-end's offer is known once GET_FEATURES and GET_PROTOCOL_FEATURES were answered.
    """

    def __init__(self) -> None:
        super().__init__(Negotiation())

    @property
    def negotiation(self) -> Negotiation:
        """The features offered and negotiated."""
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
    """A front-end's end of the second socket: it answers the back-end's requests."""

    def __init__(self, session: FrontendSession) -> None:
        super().__init__(BACKEND_REQUESTS, session.negotiation)
