"""A front-end's requests: cancelled, not answered, refused, and after the end of the connection."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from protocol.io import FdStream
from protocol.vhost_user import GetFeatures, GetQueueNum, Number, SetVringNum
from tests.vhost_user.echo import Echo
from vhost_user.frontend import BackendError, BackendGoneError, connect
from vhost_user.testing import driving


async def test_request_that_is_cancelled_leaves_the_connection_usable() -> None:
    async with driving(Echo()) as front:
        for _ in range(3):
            with trio.move_on_after(0) as scope:
                await front.ask(GetQueueNum())
            assert scope.cancelled_caught
        assert await front.ask(GetQueueNum()) == Number(2)


async def test_back_end_that_answers_nothing_is_not_waited_for_longer_than_patience() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with connect(stream=FdStream(ours), patience=0.01) as front:
            with pytest.raises(BackendError, match=r"does not answer GET_FEATURES within 0\.01 s"):
                await front.ask(GetFeatures())


async def test_refusal_says_what_was_asked_for() -> None:
    async with driving(Echo()) as front:
        with pytest.raises(BackendError, match="the back-end refuses SET_VRING_NUM index=7 num=16"):
            await front.ask(SetVringNum(7, 16))


async def test_all_tasks_that_wait_are_told_of_the_end() -> None:
    ours, theirs = socket.socketpair()
    told: list[str] = []
    async with connect(stream=FdStream(ours)) as front, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(BackendGoneError, match="has closed the connection") as caught:
                await front.ask(GetFeatures())
            told.append(str(caught.value))

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        theirs.shutdown(socket.SHUT_WR)
    theirs.close()
    assert len(told) == 2
