"""A requester over a stream: requests in their order, answers to whoever asked, nothing left open."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.fds import OwnedFd
from protocol.io import FdStream
from protocol.vhost_user import (
    BackendSession,
    FrontendSession,
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    Number,
    ProtocolFeature,
    ProtocolFeatures,
    Request,
    SetLogFd,
    SetOwner,
    SetProtocolFeatures,
)
from protocol.vhost_user.messages.setup import Features
from protocol.virtio.features import Feature
from vhost_user.transport.asker import Asker
from vhost_user.transport.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 60
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class GoneError(Exception):
    """The end of a connection."""


class Pair:
    """An asker, and a back-end that answers when it is told to."""

    def __init__(self, may_send: Callable[[Request, tuple[Request, ...]], bool] | None = None) -> None:
        ours, self.end = socket.socketpair()
        self.stream, self.other = FdStream(ours), FdStream(self.end)
        self.session = FrontendSession()
        self.answering = BackendSession(Feature.PROTOCOL_FEATURES, PROTOCOL)
        self.asker = Asker(self.stream, self.session, self.session.negotiation, may_send=may_send)
        self.results: list[object] = []

    async def read(self) -> Request:
        """Return the next request."""
        with trio.fail_after(SECONDS):
            while True:
                data, fds = await self.other.receive(self.answering.bytes_wanted)
                assert data, "the asker has left"
                for request in self.answering.receive(data, fds):
                    assert isinstance(request, Request)
                    return request

    async def answer(self, request: Request) -> None:
        if isinstance(request, GetFeatures):
            packet = self.answering.reply(request, Features(Feature.PROTOCOL_FEATURES))
        elif isinstance(request, GetProtocolFeatures):
            packet = self.answering.reply(request, ProtocolFeatures(PROTOCOL))
        elif isinstance(request, GetQueueNum):
            packet = self.answering.reply(request, 3)
        else:
            acknowledgement = self.answering.acknowledge(request)
            assert acknowledgement is not None
            packet = acknowledgement
        await self.other.send(*packet)

    async def ask(self, request: Request) -> None:
        """Ask, and keep the reply or the error."""
        try:
            self.results.append(await self.asker.ask(request))
        except Exception as error:
            self.results.append(error)

    async def negotiate(self) -> None:
        async with trio.open_nursery() as nursery:
            for request in (GetFeatures(), GetProtocolFeatures()):
                nursery.start_soon(self.ask, request)
                await self.answer(await self.read())
                await wait_all_tasks_blocked()  # the second request needs the reply to the first
        await self.asker.ask(SetProtocolFeatures(PROTOCOL), need_reply=False)
        await self.read()
        self.results.clear()

    def close(self) -> None:
        self.asker.fail(GoneError())
        self.stream.close()
        self.other.close()


async def test_replies_go_to_those_who_asked_in_their_order() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.asker.run)
        await pair.negotiate()
        nursery.start_soon(pair.ask, GetQueueNum())
        await wait_all_tasks_blocked()
        nursery.start_soon(pair.ask, SetOwner())
        first, second = await pair.read(), await pair.read()
        assert (type(first), type(second)) == (GetQueueNum, SetOwner)
        assert second.need_reply  # REPLY_ACK was negotiated
        await pair.answer(first)
        await wait_all_tasks_blocked()
        assert pair.results == [Number(3)]
        await pair.answer(second)
        await wait_all_tasks_blocked()
        assert len(pair.results) == 2
        nursery.cancel_scope.cancel()
    pair.close()


async def test_request_that_is_cancelled_is_sent_whole_and_its_reply_closed() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.asker.run)
        await pair.negotiate()
        with trio.move_on_after(0):
            await pair.asker.ask(GetQueueNum())
        await pair.answer(await pair.read())
        nursery.start_soon(pair.ask, GetQueueNum())
        await pair.answer(await pair.read())
        await wait_all_tasks_blocked()
        assert pair.results == [Number(3)]
        nursery.cancel_scope.cancel()
    pair.close()


async def test_request_that_must_not_be_sent_is_an_error_of_who_asked() -> None:
    pair = Pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.asker.run)
        with pytest.raises(LocalProtocolError, match="GET_QUEUE_NUM"):
            await pair.asker.ask(GetQueueNum())
        nursery.cancel_scope.cancel()
    pair.close()


async def test_end_of_the_connection_reaches_everybody_and_closes_what_was_to_be_sent() -> None:
    pair = Pair(may_send=lambda _, unanswered: not unanswered)
    fd = OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.asker.run)
        await pair.negotiate()
        nursery.start_soon(pair.ask, GetQueueNum())
        await wait_all_tasks_blocked()
        held = SetLogFd(fds=(fd,))
        nursery.start_soon(pair.ask, held)
        await wait_all_tasks_blocked()
        assert held.fds  # it may not go beside the first one
        error = GoneError()
        pair.asker.fail(error)
        pair.stream.close()
    assert held.fds == ()
    assert pair.results == [error, error]
    with pytest.raises(GoneError):
        await pair.asker.ask(SetOwner())
    pair.close()


async def test_held_request_goes_once_the_one_before_it_is_answered() -> None:
    pair = Pair(may_send=lambda _, unanswered: not unanswered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.asker.run)
        await pair.negotiate()
        for _ in range(2):
            nursery.start_soon(pair.ask, GetQueueNum())
        first = await pair.read()
        await wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            pair.other.receive_nowait(1)
        await pair.answer(first)
        await pair.answer(await pair.read())
        await wait_all_tasks_blocked()
        assert pair.results == [Number(3)] * 2
        nursery.cancel_scope.cancel()
    pair.close()


async def test_what_is_not_a_reply_ends_the_connection() -> None:
    pair = Pair()
    await pair.other.send(bytes(12))
    with pytest.raises(RemoteProtocolError):
        await pair.asker.run()
    pair.close()


async def test_stream_that_fails_is_a_lost_connection() -> None:
    pair = Pair()
    pair.end.shutdown(socket.SHUT_RD)
    pair.asker.post(GetFeatures(), lambda reply, error: pair.results.append(error))
    with pytest.raises(ConnectionLostError):
        await pair.asker.run()
    error = GoneError()
    pair.asker.fail(error)
    assert pair.results == [error]
    pair.close()
