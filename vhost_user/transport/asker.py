"""Asker: sends requests over a stream, in their order, and gives each its answer."""

# How it works: both ends of vhost-user that ask are an asker: the front-end's on its connection, the
# back-end's on the channel for its own requests. Any task may ask or post. What is posted waits in a queue;
# `run()` has one task that sends it and one that receives, and nothing else touches the stream.
#
# A request is posted, sent, and answered, or closed by the end of the connection. It is sent whole also
# where the asking task is cancelled meanwhile, as half a message would end the connection. Replies come in
# the order of the requests, so the first of the unanswered ones gets the next reply.
#
# Descriptors: a request's are closed once it is sent, or once it is clear that it never will be. Those of a
# reply belong to whoever asked; a reply that comes when that task waits no more is closed on arrival.
# `fail()` ends everything that waits, and everything that is posted later; it closes nothing but requests.

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import trio

from protocol.errors import ProtocolError
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import ProtocolFeature, describe
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.io import FdStream
    from protocol.vhost_user import Negotiation, Reply, Request
    from protocol.vhost_user.requester import Requester

    Finish: TypeAlias = Callable[[Reply | None, Exception | None], None]
    """Is told of a request's end: its reply, None where none is due, or why there is none."""


class Asker:
    """Makes requests with `session` over `stream`. Start `run()` in a task.

    Messages are logged at the level of debugging, to `log` if there is one.
    `may_send(request, unanswered)` tells whether a request may go out beside those that were not answered
    yet; it is asked again whenever one was.
    """

    def __init__(
        self,
        stream: FdStream,
        session: Requester,
        negotiation: Negotiation,
        *,
        log: logging.Logger | None = None,
        may_send: Callable[[Request, tuple[Request, ...]], bool] | None = None,
    ) -> None:
        """Use `stream` and `session`, which stay the caller's to close."""
        self.failure: Exception | None = None
        """The error of each later request; None while the connection is there."""
        self._stream = stream
        self._session = session
        self._negotiation = negotiation
        self._log = log
        self._may_send = may_send
        self._outgoing: deque[tuple[Request, bool | None, Finish]] = deque()
        self._unanswered: deque[Finish] = deque()
        self._moved = trio.lowlevel.ParkingLot()
        """Woken when something is posted or answered."""

    async def ask(self, request: Request, *, need_reply: bool | None = None) -> Reply | None:
        """Send `request`; return the reply, which the caller closes, or None where none is due.

        An acknowledgement is asked for where REPLY_ACK was negotiated, unless `need_reply` says otherwise.
        Closes the request's descriptors in any case. Raises LocalProtocolError for a request that must not
        be sent, and what `fail()` was told where the connection ends.
        """
        answer = _Answer()
        self.post(request, answer.arrive, need_reply=need_reply)
        try:
            await answer.arrived.wait()
        except BaseException:
            answer.abandon()
            raise
        if answer.error is not None:
            raise answer.error
        return answer.reply

    def post(self, request: Request, finish: Finish, *, need_reply: bool | None = None) -> None:
        """Send `request` soon, and call `finish` in the end. Raises what `fail()` was told."""
        if self.failure is not None:
            request.close()
            raise self.failure
        self._outgoing.append((request, need_reply, finish))
        self._moved.unpark()

    async def run(self) -> None:
        """Send and receive until the other side closes its end, or the stream is closed here.

        Raises ConnectionLostError, and RemoteProtocolError for what is not a reply. The caller calls
        `fail()` then, in any case.
        """
        lost: list[ConnectionLostError] = []
        received: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, nursery.cancel_scope, lost)
            received = await self._receive()
            nursery.cancel_scope.cancel()
        for error in [*lost, received]:
            if error is not None:
                raise error

    def fail(self, error: Exception) -> None:
        """Raise `error` in all tasks that wait, and in those that ask later; the first one counts."""
        if self.failure is None:
            self.failure = error
        while self._unanswered:
            self._unanswered.popleft()(None, self.failure)
        while self._outgoing:
            request, _, finish = self._outgoing.popleft()
            request.close()
            finish(None, self.failure)

    async def _send(self, whole: trio.CancelScope, lost: list[ConnectionLostError]) -> None:
        try:
            while True:
                while not self._is_next_due():
                    await self._moved.park()
                await self._send_next()
        except OSError as error:
            lost.append(ConnectionLostError(error.strerror))
            whole.cancel()
        except trio.ClosedResourceError:
            whole.cancel()

    def _is_next_due(self) -> bool:
        if not self._outgoing:
            return False
        return self._may_send is None or self._may_send(self._outgoing[0][0], self._session.waiting)

    async def _send_next(self) -> None:
        request, need_reply, finish = self._outgoing.popleft()
        if need_reply is None:
            need_reply = ProtocolFeature.REPLY_ACK in self._negotiation.protocol_features
        try:
            packet = self._session.request(request, need_reply=need_reply)
        except ProtocolError as error:
            request.close()
            finish(None, error)
            return
        if self._log and self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("> %s", describe(request))
        waiting = self._session.waiting
        is_answered = bool(waiting) and waiting[-1] is request
        self._unanswered.append(finish)  # also one without an answer, for fail(), while it is sent
        try:
            await self._stream.send(*packet)
        finally:
            request.close()
        if not is_answered and self.failure is None:
            self._unanswered.pop()(None, None)

    async def _receive(self) -> Exception | None:
        """Receive until the end; return what went wrong."""
        try:
            while True:
                data, fds = await self._stream.receive(self._session.bytes_wanted, MAX_FDS)
                for reply in self._session.receive(data, fds):
                    if self._log and self._log.isEnabledFor(logging.DEBUG):
                        self._log.debug("< %s", describe(reply))
                    self._unanswered.popleft()(reply, None)
                self._moved.unpark()
                if not data:
                    return None
        except OSError as error:
            return ConnectionLostError(error.strerror)
        except ProtocolError as error:
            return error
        except trio.ClosedResourceError:
            return None


class _Answer:
    """The answer to one request; it is closed on arrival if the task that asked waits no more."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self.arrived = trio.Event()
        self._is_wanted = True

    def arrive(self, reply: Reply | None, error: Exception | None) -> None:
        """Take the reply, or why there is none."""
        self.reply, self.error = reply, error
        self.arrived.set()
        if not self._is_wanted:
            self.abandon()

    def abandon(self) -> None:
        """Close the reply, also one that is still to come."""
        self._is_wanted = False
        if self.reply is not None:
            self.reply.close()
