"""Connection: a front-end's requests of a back-end, and the replies that come to them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from protocol.io import connect
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import FrontendSession, ProtocolFeature, SetLogBase, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from protocol.io import FdStream
    from protocol.vhost_user import FrontendMessage, Reply

RETRY_SECONDS = 0.02
"""How often to look for a back-end that is not up yet."""


class BackendError(Exception):
    """The back-end refuses something, does not do it, or does it wrong. One line that says what."""


class BackendGoneError(BackendError):
    """The back-end has closed the connection."""


class _Answer:
    """What somebody waits for who asked."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.arrived = trio.Event()
        self.is_wanted = True

    def arrive(self, reply: Reply | None) -> None:
        """Hand the reply over, or None where the connection is lost."""
        self.reply = reply
        self.arrived.set()
        if reply is not None and not self.is_wanted:
            reply.close()


class Connection:
    """One connection to a back-end. Somebody must `run()` it; `close()` closes it."""

    def __init__(self, stream: FdStream, patience: float, lost: Callable[[BackendError], None]) -> None:
        """Take ownership of `stream`. A reply may take `patience` seconds. `lost` is told of the end."""
        self.session = FrontendSession()
        self.failure: BackendError | None = None
        """Why nothing can be asked any more, if so."""
        self._stream = stream
        self._patience = patience
        self._lost = lost
        self._sending = trio.Lock()
        self._answers: dict[int, _Answer] = {}

    async def ask(self, message: FrontendMessage, *, need_reply: bool | None = None) -> Reply | None:
        """Send a request, and wait for the reply, which the caller closes; None if none is due.

        Closes the message's descriptors. An acknowledgement is asked for where REPLY_ACK was
        negotiated, unless `need_reply` says otherwise. Raises BackendError for a reply that says that
        it failed, and for none in time; BackendGoneError; LocalProtocolError for a request that must
        not be sent.
        """
        answer = await self._send(message, need_reply)
        if answer is None:
            return None
        with patience(self._patience, f"answer {describe(message)}"), _given_up(answer):
            await answer.arrived.wait()
        if answer.reply is None:
            raise self.failure or BackendGoneError("the connection was closed")
        # libvhost-user answers SET_LOG_BASE with the size that it was sent, and QEMU never looks at it.
        if answer.reply.failed and not isinstance(message, SetLogBase):
            answer.reply.close()
            raise BackendError(f"the back-end refuses {describe(message)}; its log says why")
        return answer.reply

    async def run(self) -> None:
        """Receive replies until the back-end leaves. Raises RemoteProtocolError for anything else."""
        try:
            while await self._receive():
                pass
        except OSError as error:
            self.fail(BackendGoneError(f"the back-end has gone: {error.strerror}"))
        except trio.ClosedResourceError:
            return  # by close()
        self.fail(BackendGoneError("the back-end has closed the connection; its log says why"))

    def fail(self, error: BackendError) -> None:
        """Have everybody who waits for a reply get `error`, and everybody who asks later."""
        if self.failure is None:
            self.failure = error
            self._lost(error)
        while self._answers:
            self._answers.popitem()[1].arrive(None)

    def close(self) -> None:
        """Close the socket."""
        self.fail(BackendGoneError("the connection was closed"))
        self.session.close()
        self._stream.close()

    async def _send(self, message: FrontendMessage, need_reply: bool | None) -> _Answer | None:
        """Send a request; return the answer to wait for, if one is due."""
        if need_reply is None:
            acknowledges = ProtocolFeature.REPLY_ACK in self.session.protocol_features
            need_reply = acknowledges and not message.is_always_replied()
        with contextlib.closing(message):
            async with self._sending:
                if self.failure is not None:
                    raise self.failure
                packet = self.session.request(message, need_reply)
                answer = self._expect(message)
                with self._whole(message):
                    await self._stream.send(*packet)
        return answer

    def _expect(self, message: FrontendMessage) -> _Answer | None:
        if all(each is not message for each in self.session.waiting):
            return None
        answer = self._answers[id(message)] = _Answer()
        return answer

    @contextlib.contextmanager
    def _whole(self, message: FrontendMessage) -> Iterator[None]:
        """Give the connection up where a request is not sent as a whole."""
        try:
            yield
        except OSError as error:
            self.fail(BackendGoneError(f"the back-end has gone: {error.strerror}"))
            raise BackendGoneError(f"the back-end takes no {message.label}: {error.strerror}") from None
        except BaseException:
            self.fail(BackendGoneError(f"{message.label} was cancelled before it was sent"))
            raise

    async def _receive(self) -> bool:
        data, fds = await self._stream.receive(self.session.bytes_wanted, MAX_FDS)
        for reply in self.session.receive(data, fds):
            self._answers.pop(id(reply.answers)).arrive(reply)
        return bool(data)


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


@contextlib.contextmanager
def _given_up(answer: _Answer) -> Iterator[None]:
    """Close a reply that comes when nobody waits for it any more."""
    try:
        yield
    except BaseException:
        answer.is_wanted = False
        if answer.reply is not None:
            answer.reply.close()
        raise
