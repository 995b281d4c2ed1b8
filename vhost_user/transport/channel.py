"""Channel: the back-end's own requests of its front-end, over the socket of SET_BACKEND_REQ_FD."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import trio

from protocol.errors import ProtocolError
from protocol.vhost_user import BackendChannel, ConfigChange, ProtocolFeature, VringCall, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.io import FdStream
    from protocol.vhost_user import BackendMessage, BackendSession, Reply

    Finish: TypeAlias = Callable[[Reply | None, Exception | None], None]

_log = logging.getLogger("vhost_user")

_REPEATS = 3
"""How often a CONFIG_CHANGE_MSG is repeated at most, where the driver does not read its configuration."""


class FrontendError(Exception):
    """The front-end cannot be asked for something, or has refused it. One line that says what and why."""


class Channel:
    """Sends requests in their order, and matches the replies with them.

    A front-end that waits for a reply of ours does not read this socket. So nothing that answers
    one of its requests waits for anything here.

    User Mode Linux, where it reads a VRING_CALL together with a CONFIG_CHANGE_MSG, keeps the latter for
    its next interrupt without a call, which may never come. So where notifications go in-band, nothing
    else is under way with a CONFIG_CHANGE_MSG, and after a call it is repeated if the configuration was
    not read.
    """

    def __init__(
        self, stream: FdStream, session: BackendSession, is_suspended: Callable[[], bool] = lambda: False
    ) -> None:
        """Take ownership of `stream`. Somebody must `run()` the channel, which closes it in the end.

        While `is_suspended()`, nothing is notified; whoever knows when that ends calls `resume()`.
        """
        self._stream = stream
        self._session = BackendChannel(session)
        self._negotiation = session.negotiation
        self._outgoing: deque[tuple[BackendMessage, Finish]] = deque()
        self._moved = trio.lowlevel.ParkingLot()
        """Woken when something is posted or answered."""
        self._unanswered: dict[int, Finish] = {}
        self._notifying: dict[tuple[str, int], bool] = {}
        self._is_suspended = is_suspended
        self._held: dict[tuple[str, int], BackendMessage] = {}
        self._repeats = 0
        self._closed = False

    async def request(self, message: BackendMessage) -> Reply | None:
        """Send `message`, and return the reply, or None where none is due; the caller closes it.

        Closes the descriptors of `message` in any case. Raises FrontendError where the front-end
        refuses, where it may not be asked, and where it has gone.
        """
        answer = _Answer()
        self._post(message, answer.arrive)
        try:
            reply = await answer.wait()
        except BaseException:
            answer.abandon()
            raise
        if reply is not None and reply.failed:
            reply.close()
            raise FrontendError(f"the front-end refuses {describe(message)}")
        return reply

    def notify(self, message: BackendMessage, index: int = 0) -> None:
        """Send `message` soon, but none of its kind and `index` before the last one was answered.

        Those that come meanwhile become one. Does nothing where the front-end has gone. While the
        device is suspended, which must not send anything then (vhost-user, "Suspended device
        state"), it is kept until the device is no longer.
        """
        if isinstance(message, ConfigChange):
            self._repeats = _REPEATS
        self._notify(message, index)

    def config_read(self) -> None:
        """Note that the driver reads its configuration, and so needs not be told of the last change again."""
        self._repeats = 0

    def _notify(self, message: BackendMessage, index: int) -> None:
        key = (message.label, index)
        if self._closed:
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

        self._post(message, notified)

    def _repeat_change(self) -> None:
        """Send a CONFIG_CHANGE_MSG again that may have been read together with a call."""
        change = ConfigChange()
        if self._repeats and (change.label, 0) not in self._notifying:
            self._repeats -= 1
            self._notify(change, 0)

    def resume(self) -> None:
        """Send what was to be notified while the device was suspended, which it is no longer."""
        held, self._held = self._held, {}
        for (_, index), message in held.items():
            self._notify(message, index)

    async def run(self) -> None:
        """Send and receive until the front-end closes its end; close the channel then, or when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, nursery.cancel_scope)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket; whoever waits for an answer gets FrontendError."""
        self._closed = True
        self._session.close()
        self._stream.close()
        gone = FrontendError("the front-end has gone")
        unanswered, self._unanswered = self._unanswered, {}
        for finish in unanswered.values():
            finish(None, gone)
        while self._outgoing:
            message, finish = self._outgoing.popleft()
            message.close()
            finish(None, gone)

    def _post(self, message: BackendMessage, finish: Finish) -> None:
        if self._closed:
            message.close()
            raise FrontendError("the front-end has gone")
        self._outgoing.append((message, finish))
        self._moved.unpark()

    async def _send(self, whole: trio.CancelScope) -> None:
        try:
            while True:
                while not self._may_send():
                    await self._moved.park()
                await self._send_next()
        except OSError as error:
            _log.warning("the back-end channel is lost: %s", error.strerror)
            whole.cancel()
        except trio.ClosedResourceError:
            whole.cancel()

    def _may_send(self) -> bool:
        """Tell whether there is something to send, and it may go beside what is unanswered."""
        if not self._outgoing:
            return False
        unanswered = self._session.waiting
        if not unanswered or ProtocolFeature.INBAND_NOTIFICATIONS not in self._negotiation.protocol_features:
            return True
        return not any(isinstance(each, ConfigChange) for each in (self._outgoing[0][0], *unanswered))

    async def _send_next(self) -> None:
        message, finish = self._outgoing.popleft()
        ack = ProtocolFeature.REPLY_ACK in self._negotiation.protocol_features
        try:
            packet = self._session.request(message, need_reply=ack)
        except ProtocolError as error:
            message.close()
            finish(None, FrontendError(str(error)))
            return
        _log.debug("> %s", describe(message))
        self._unanswered[id(message)] = finish
        try:
            await self._stream.send(*packet)
        finally:
            message.close()
        if all(each is not message for each in self._session.waiting):
            finish = self._unanswered.pop(id(message), finish)
            finish(None, None)

    async def _receive(self) -> None:
        try:
            while True:
                data, fds = await self._stream.receive(self._session.bytes_wanted)
                for reply in self._session.receive(data, fds):
                    _log.debug("< %s", describe(reply))
                    self._unanswered.pop(id(reply.answers))(reply, None)
                self._moved.unpark()
                if not data:
                    return
        except (OSError, ProtocolError) as error:
            _log.warning("the back-end channel is lost: %s", str(error))
        except trio.ClosedResourceError:
            pass  # by close(): the front-end gave another channel


class _Answer:
    """What somebody waits for who made a request."""

    def __init__(self) -> None:
        self._reply: Reply | None = None
        self._error: Exception | None = None
        self._arrived = trio.Event()
        self._abandoned = False

    def arrive(self, reply: Reply | None, error: Exception | None) -> None:
        self._reply, self._error = reply, error
        self._arrived.set()
        if self._abandoned:
            self.abandon()

    def abandon(self) -> None:
        """Nobody waits any more: close what comes."""
        self._abandoned = True
        if self._reply is not None:
            self._reply.close()

    async def wait(self) -> Reply | None:
        await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return self._reply
