"""Channel: a back-end's own requests, over the socket of SET_BACKEND_REQ_FD."""

# How it works: an asker, with notifications beside its requests. A front-end that waits for a reply of ours
# does not read this socket. So nothing that answers one of its requests waits for anything here: `notify()`
# posts and returns, and of each kind (and queue) one is under way at most. Those that come meanwhile become
# one more. While all rings are stopped ("Suspended device state") notifications are kept, one of each kind,
# until a ring is started.
#
# User Mode Linux, where it reads a VRING_CALL together with a CONFIG_CHANGE_MSG, keeps the latter for its
# next interrupt without a call, which may never come. So where notifications go in-band, nothing else is
# under way with a CONFIG_CHANGE_MSG, and after a call it is repeated if the configuration was not read.
#
# The channel ends when the front-end closes its end, passes another one, or leaves. Whoever waits then gets
# FrontendError. `close()` closes the socket, and may be called at any time and more than once.

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.errors import ProtocolError
from protocol.vhost_user import BackendChannel, ConfigChange, ProtocolFeature, VringCall, describe
from vhost_user.transport.asker import Asker
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.io import FdStream
    from protocol.vhost_user import BackendMessage, BackendSession, Reply, Request

_log = logging.getLogger("vhost_user")

_REPEATS = 3
"""How often a CONFIG_CHANGE_MSG is repeated at most, where the driver does not read its configuration."""


class FrontendError(Exception):
    """The front-end cannot be asked for something, or has refused it. One line that says what and why."""


class Channel:
    """Sends requests in their order, and notifications, for which no task waits."""

    def __init__(
        self, stream: FdStream, session: BackendSession, is_suspended: Callable[[], bool] = lambda: False
    ) -> None:
        """Take ownership of `stream`. Start `run()` in a task, which closes it in the end.

        While `is_suspended()`, no notification is sent; call `resume()` when that ends.
        """
        self._stream = stream
        self._session = BackendChannel(session)
        self._negotiation = session.negotiation
        self._asker = Asker(stream, self._session, self._negotiation, log=_log, may_send=self._may_send)
        self._notifying: dict[tuple[str, int], bool] = {}
        """What is under way, and whether it came again meanwhile."""
        self._is_suspended = is_suspended
        self._held: dict[tuple[str, int], BackendMessage] = {}
        self._repeats = 0

    async def request(self, message: BackendMessage) -> Reply | None:
        """Send `message`, and return the reply, or None where none is due; the caller closes it.

        Closes the descriptors of `message` in any case. Raises FrontendError where the front-end
        refuses, where it may not be asked, and where it has gone.
        """
        try:
            reply = await self._asker.ask(message)
        except ProtocolError as error:
            raise FrontendError(str(error)) from None
        if reply is not None and reply.failed:
            reply.close()
            raise FrontendError(f"the front-end refuses {describe(message)}")
        return reply

    def notify(self, message: BackendMessage, index: int = 0) -> None:
        """Send `message` soon, but none of its kind and `index` before the last one was answered.

        Those that come meanwhile become one. Does nothing where the front-end has gone. While the
        device is suspended, which must not send anything then (vhost-user, "Suspended device
        state"), it is kept until a ring is started.
        """
        if isinstance(message, ConfigChange):
            self._repeats = _REPEATS
        self._notify(message, index)

    def config_read(self) -> None:
        """Record that the driver reads its configuration: the last change is not repeated."""
        self._repeats = 0

    def _notify(self, message: BackendMessage, index: int) -> None:
        key = (message.label, index)
        if self._asker.failure is not None:
            return
        if self._is_suspended():
            self._held[key] = message
            return
        if key in self._notifying:
            self._notifying[key] = True
            return
        self._notifying[key] = False

        def notified(_: Reply | None, error: Exception | None) -> None:
            again = self._notifying.pop(key)
            if error is not None:
                _log.debug("%s was not sent: %s", message.label, str(error))
            elif again:
                self._notify(message, index)
            if error is None and isinstance(message, VringCall):
                self._repeat_change()

        self._asker.post(message, notified)

    def _repeat_change(self) -> None:
        """Send a CONFIG_CHANGE_MSG again that may have been read together with a call."""
        change = ConfigChange()
        if self._repeats and (change.label, 0) not in self._notifying:
            self._repeats -= 1
            self._notify(change, 0)

    def resume(self) -> None:
        """Send the notifications that were kept while the device was suspended."""
        held, self._held = self._held, {}
        for (_, index), message in held.items():
            self._notify(message, index)

    async def run(self) -> None:
        """Send and receive until the front-end closes its end; close the channel then, or when cancelled."""
        try:
            await self._asker.run()
        except (ConnectionLostError, ProtocolError) as error:
            _log.warning("the back-end channel is lost: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket; tasks that wait for an answer get FrontendError."""
        self._asker.fail(FrontendError("the front-end has gone"))
        self._session.close()
        self._stream.close()

    def _may_send(self, request: Request, unanswered: tuple[Request, ...]) -> bool:
        """Tell whether a request may go out beside those that were not answered yet."""
        if not unanswered or ProtocolFeature.INBAND_NOTIFICATIONS not in self._negotiation.protocol_features:
            return True
        return not any(isinstance(each, ConfigChange) for each in (request, *unanswered))
