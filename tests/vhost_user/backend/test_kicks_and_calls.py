"""Kicks and calls of a ring: descriptors that change, polling, and messages in-band."""

from __future__ import annotations

import os

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.io import EventFd
from protocol.vhost_user import (
    SetVringBase,
    SetVringCall,
    SetVringKick,
    SetVringNum,
    VringKick,
)
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import INBAND, attached, until, works


async def test_rule_06_call_descriptor_may_be_replaced_at_any_time() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        for _ in range(3):
            old, queue.call = queue.call, EventFd.create()
            with old:
                await frontend.request(SetVringCall(0, fds=(queue.call.dup(),)))
                assert await works(queue)
                old.take()
                assert await works(queue)
                assert old.take() == 0


async def test_rule_06_call_descriptor_may_be_taken_away() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetVringCall(0, no_fd=True))
        queue.submit([b"ping"], [8])
        assert await until(queue.collect) == [[b"ping"]]
        assert queue.call.take() == 0


async def test_call_that_may_have_been_missed_is_repeated_on_the_new_descriptor() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        assert await works(queue)
        fresh = EventFd.create()
        with fresh:
            await frontend.request(SetVringCall(0, fds=(fresh.dup(),)))
            assert fresh.take() == 1


async def test_no_kick_descriptor_means_polling() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.set_up()
        await frontend.request(SetVringKick(0, no_fd=True))
        await queue.enable()
        await wait_all_tasks_blocked()
        assert await works(queue)
        assert await queue.stop() == 1


async def test_in_band_kicks_and_calls() -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        await frontend.negotiate(protocol=INBAND)
        await frontend.open_channel(nursery)
        await frontend.share_memory()
        queue = frontend.queue()
        await frontend.request(SetVringNum(0, queue.size))
        await frontend.request(SetVringBase(0, 0))
        await frontend.request(queue.address())
        await frontend.request(SetVringKick(0, no_fd=True))
        await queue.enable()
        for count in range(1, 4):
            queue.submit([b"ping"], [8])
            await frontend.request(VringKick(0))
            await frontend.until_asked(count)
            assert queue.collect() == [[b"ping"]]
            queue.ring.want_calls(True)
        assert {type(each).__name__ for each in frontend.backend_requests} == {"VringCall"}
        nursery.cancel_scope.cancel()


async def test_in_band_kick_starts_a_ring() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate(protocol=INBAND)
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.set_up()
        await queue.enable()
        queue.submit([b"ping"], [8])
        await frontend.request(VringKick(0))
        assert await queue.wait() == [[b"ping"]]


async def test_in_band_kick_of_a_ring_whose_kick_descriptor_is_no_eventfd_is_refused() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate(protocol=INBAND)
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.set_up()
        await frontend.request(SetVringKick(0, fds=(OwnedFd(os.open("/dev/zero", os.O_RDONLY)),)))
        reply = await frontend.try_request(VringKick(0))
        assert reply is not None
        assert reply.failed
