"""A responder over a stream: what is handled, answered, refused and closed."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.fds import OwnedFd
from protocol.io import FdStream
from protocol.vhost_user import (
    BackendSession,
    FrontendSession,
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    ProtocolFeature,
    ProtocolFeatures,
    SetLogFd,
    SetOwner,
    SetProtocolFeatures,
)
from protocol.vhost_user.messages.setup import Features
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from vhost_user.transport.answerer import Answerer
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from protocol.vhost_user import Refused, Reply, Request
    from vhost_user.transport.answerer import Answer

SECONDS = 60
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class Handler:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refusals: list[str] = []
        self.refuses = False

    async def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        if self.refuses:
            raise RefusedError("not today")
        if isinstance(request, GetFeatures):
            return Features(Feature.PROTOCOL_FEATURES)
        if isinstance(request, GetProtocolFeatures):
            return ProtocolFeatures(PROTOCOL)
        return 3 if isinstance(request, GetQueueNum) else None

    def log_refusal(self, request: Request | Refused, reason: str) -> None:
        self.refusals.append(f"{request.label}: {reason}")


class Pair:
    """An answerer, and a front-end that asks it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.front, self.stream = FdStream(ours), FdStream(theirs)
        self.session = FrontendSession()
        self.handler = Handler()
        backend = BackendSession(Feature.PROTOCOL_FEATURES, PROTOCOL)
        self.answerer = Answerer(self.stream, backend, self.handler)

    async def ask(self, request: Request, *, need_reply: bool = False) -> Reply | None:
        await self.front.send(*self.session.request(request, need_reply))
        with trio.fail_after(SECONDS):
            while self.session.waiting:
                if replies := self.session.receive(*await self.front.receive(self.session.bytes_wanted)):
                    return replies[0]
        return None

    async def negotiate(self) -> None:
        await self.ask(GetFeatures())
        await self.ask(GetProtocolFeatures())
        await self.ask(SetProtocolFeatures(PROTOCOL))
        await self.ask(GetQueueNum())

    def close(self) -> None:
        self.front.close()
        self.stream.close()


async def test_requests_are_answered_until_the_other_side_leaves() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.answerer.run)
        await pair.negotiate()
        reply = await pair.ask(GetQueueNum())
        assert reply is not None
        assert vars(reply)["value"] == 3
        assert await pair.ask(SetOwner()) is None
        pair.front.close()
    pair.close()
    assert [type(each) for each in pair.handler.requests[-2:]] == [GetQueueNum, SetOwner]


async def test_refused_request_is_answered_reported_and_closed() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.answerer.run)
        await pair.negotiate()
        pair.handler.refuses = True
        with OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            reply = await pair.ask(SetLogFd(fds=(fd,)), need_reply=True)
        assert reply is not None
        assert reply.failed
        assert pair.handler.refusals == ["SET_LOG_FD: not today"]
        assert pair.handler.requests[-1].fds == ()
        pair.front.close()
    pair.close()


async def test_run_ends_where_the_stream_is_closed_here() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.answerer.run)
        await pair.negotiate()
        pair.stream.close()
    pair.close()


async def test_reply_that_cannot_be_sent_is_a_lost_connection() -> None:
    pair = Pair()
    await pair.front.send(*pair.session.request(GetFeatures()))
    pair.front.close()
    with pytest.raises(ConnectionLostError):
        await pair.answerer.run()
    pair.close()


async def test_fault_of_a_handler_comes_out_as_it_is() -> None:
    """An OSError of a device is not taken for one of the stream."""
    pair = Pair()

    async def handle(request: Request) -> Answer:
        raise OSError(5, "the disk")

    pair.handler.handle = handle  # type: ignore[method-assign]
    await pair.front.send(*pair.session.request(GetFeatures()))
    with pytest.raises(OSError, match="the disk"):
        await pair.answerer.run()
    pair.close()
