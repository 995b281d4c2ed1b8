"""Addresses that the front-end translates for the guest's IOMMU, and an IOMMU that was not asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import (
    BackendIotlbMsg,
    IotlbMsg,
    IotlbType,
    Permission,
    SetFeatures,
)
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import (
    DEFAULT_FEATURES,
    GUEST,
    USER,
    Frontend,
    attached,
    until,
    works,
)
from vhost_user import RING_FEATURES

if TYPE_CHECKING:
    import pytest

    from protocol.vhost_user import FrontendChannel, Packet, Refused, Request
    from tests.vhost_user.raw_frontend import Queue

PAGE = 4096


SHIFT = 0x10_0000_0000
"""I/O virtual addresses are guest addresses and this."""


class Iommu:
    """A front-end that maps everything, a page at a time, when it is asked."""

    def __init__(self, frontend: Frontend, *, answers: bool = True) -> None:
        self.misses: list[int] = []
        self.failures: list[BackendIotlbMsg] = []
        self.is_silent = False
        """Whether it leaves misses unanswered."""
        self.flushes = 0
        """How often it has everything forgotten between telling of a page and the answer to the miss."""
        self._frontend = frontend
        self._answers = answers
        frontend.answer = self.answer  # type: ignore[method-assign]

    async def answer(self, session: FrontendChannel, request: Request | Refused) -> Packet | None:
        assert isinstance(request, BackendIotlbMsg)
        if request.type is IotlbType.ACCESS_FAIL:
            self.failures.append(request)
            return session.acknowledge(request)
        assert request.type is IotlbType.MISS
        self.misses.append(request.iova)
        if self.is_silent:
            return None
        if self._answers:
            await self.map(request.iova)
        if self.flushes:
            self.flushes -= 1
            await self.flush()
        return session.acknowledge(request, ok=self._answers)

    async def flush(self) -> None:
        """Have all that was told forgotten."""
        await self._frontend.request(IotlbMsg(0, 1 << 63, 0, Permission.READ, IotlbType.INVALIDATE))

    async def map(self, iova: int) -> None:
        page = iova // PAGE * PAGE
        user = page - SHIFT - GUEST + USER
        access = Permission.READ | Permission.WRITE
        await self._frontend.request(IotlbMsg(page, PAGE, user, access, IotlbType.UPDATE))


async def translated(frontend: Frontend) -> Queue:
    """Start a queue that finds nothing but by asking for it."""
    features = DEFAULT_FEATURES | Feature.ACCESS_PLATFORM
    await frontend.negotiate(features)
    await frontend.share_memory()
    # The driver's addresses are I/O virtual ones.
    region = frontend.memory.region
    frontend.memory.region = replace(region, guest_address=GUEST + SHIFT, user_address=GUEST + SHIFT)
    return frontend.queue()


async def test_addresses_are_asked_for_when_they_are_needed() -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        for _ in range(3):
            assert await works(queue)
        asked = len(iommu.misses)
        assert asked == 2  # the ring's page, and the buffers'
        await iommu.flush()
        assert await works(queue)
        assert len(iommu.misses) > asked
        await queue.stop()
        nursery.cancel_scope.cancel()


async def test_page_that_is_invalidated_before_the_miss_is_answered_is_asked_for_again() -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        iommu.flushes = 3
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        assert await works(queue)
        assert iommu.failures == []
        assert iommu.misses[0] == iommu.misses[1]
        await queue.stop()
        nursery.cancel_scope.cancel()


async def test_address_that_the_guest_does_not_permit_breaks_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend, answers=False)
        await queue.start()
        with trio.fail_after(60):
            await queue.err.wait()
        assert "the guest's IOMMU maps nothing at" in caplog.text
        await until(lambda: iommu.failures)
        assert [failure.iova for failure in iommu.failures] == iommu.misses
        nursery.cancel_scope.cancel()


async def test_address_that_nobody_can_be_asked_for_breaks_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(Echo()) as frontend:
        queue = await translated(frontend)
        await queue.start()
        with trio.fail_after(60):
            await queue.err.wait()
        assert "SET_BACKEND_REQ_FD" in caplog.text


async def test_queue_stops_while_the_front_end_is_asked_for_an_address() -> None:
    """It waits for our reply, so it answers nothing before it has that."""
    device = Echo()
    device.drain_seconds = 3600
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        await until(lambda: iommu.misses)
        iommu.is_silent = True
        queue.submit([b"ping"], [8])
        await until(lambda: len(iommu.misses) == 2)
        assert await queue.stop() == 0
        nursery.cancel_scope.cancel()


# The dirty log


async def test_iommu_that_was_not_asked_for_is_refused_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class WithoutIommu(Echo):
        ring_features = RING_FEATURES

    async with attached(WithoutIommu()) as frontend:
        await frontend.negotiate()
        frontend.session.negotiation.offered |= Feature.ACCESS_PLATFORM  # QEMU 7.2's rng does not look
        reply = await frontend.try_request(SetFeatures(DEFAULT_FEATURES | Feature.ACCESS_PLATFORM))
        assert reply is not None
        assert reply.failed
    assert "ACCESS_PLATFORM were not offered; start the back-end with --iommu" in caplog.text
