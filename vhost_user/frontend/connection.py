"""Connection: a front-end's requests of a back-end, and the replies that come to them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from protocol.io import connect
from protocol.vhost_user import FrontendSession, SetLogBase, describe
from vhost_user.transport.asker import Asker
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeAlias

    from protocol.io import FdStream
    from protocol.vhost_user import FrontendMessage, Reply

    Ask: TypeAlias = Callable[[FrontendMessage], Awaitable[Reply | None]]
    """Sends a request and returns its reply, as `Connection.ask()` does."""

RETRY_SECONDS = 0.02
"""How often to look for a back-end that is not up yet."""


class BackendError(Exception):
    """The back-end refuses something, does not do it, or does it wrong. One line that says what."""


class BackendGoneError(BackendError):
    """The back-end has closed the connection."""


class Connection:
    """One connection to a back-end. Start `run()` in a task; `close()` closes it."""

    def __init__(self, stream: FdStream, patience: float, lost: Callable[[BackendError], None]) -> None:
        """Take ownership of `stream`. A reply may take `patience` seconds. `lost` is called at the end."""
        self.session = FrontendSession()
        self._stream = stream
        self._patience = patience
        self._lost = lost
        self._asker = Asker(stream, self.session, self.session.negotiation)

    async def ask(self, message: FrontendMessage, *, need_reply: bool | None = None) -> Reply | None:
        """Send a request, and wait for the reply, which the caller closes; None if none is due.

        Closes the message's descriptors. An acknowledgement is asked for where REPLY_ACK was
        negotiated, unless `need_reply` says otherwise. Raises BackendError for a reply that says that
        it failed, and for none in time; BackendGoneError; LocalProtocolError for a request that must
        not be sent.
        """
        if need_reply is None and message.is_always_replied():
            need_reply = False
        reply: Reply | None = None
        with trio.move_on_after(self._patience) as scope:
            reply = await self._asker.ask(message, need_reply=need_reply)
        if scope.cancelled_caught:
            raise BackendError(
                f"the back-end does not answer {describe(message)} within {self._patience:g} s"
            )
        # libvhost-user answers SET_LOG_BASE with the size that it was sent, and QEMU never looks at it.
        if reply is not None and reply.failed and not isinstance(message, SetLogBase):
            reply.close()
            raise BackendError(f"the back-end refuses {describe(message)}; its log says why")
        return reply

    async def run(self) -> None:
        """Send and receive until the back-end leaves. Raises RemoteProtocolError for anything but replies."""
        try:
            await self._asker.run()
        except ConnectionLostError as error:
            self.fail(BackendGoneError(f"the back-end has gone: {error}"))
        else:
            self.fail(BackendGoneError("the back-end has closed the connection; its log says why"))

    def fail(self, error: BackendError) -> None:
        """Raise `error` in all tasks that wait for a reply, and in those that ask later."""
        if self._asker.failure is None:
            self._lost(error)
        self._asker.fail(error)

    def close(self) -> None:
        """Close the socket."""
        self.fail(BackendGoneError("the connection was closed"))
        self.session.close()
        self._stream.close()


async def reach(path: str, seconds: float) -> FdStream:
    """Connect to `path`, within `seconds` of a back-end that is not up yet. Raises OSError."""
    deadline = trio.current_time() + seconds
    while True:
        try:
            return await connect(path)
        except OSError as error:
            waits = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            if not waits or trio.current_time() >= deadline:
                error.filename = path
                raise
        await trio.sleep(RETRY_SECONDS)


@contextlib.contextmanager
def patience(seconds: float, what: str) -> Iterator[None]:
    """Raise BackendError where the block takes longer: the back-end does not `what`."""
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise BackendError(f"the back-end does not {what} within {seconds:g} s")
