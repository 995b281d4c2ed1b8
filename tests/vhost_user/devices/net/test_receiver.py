"""What the guest receives into: buffers that are too short, frames that it must not get, and when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import NetSetMtu
from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER, GsoType, HeaderFlag, NetFeature
from tests.vhost_user.devices.net.driver import MERGING, PLAIN, begin, frame, give
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached
from vhost_user.devices.net.device import Net

if TYPE_CHECKING:
    from vhost_user.devices.net.ports.port import Receiver

MTU = 1400
LONGEST = 14 + MTU
VLAN_TAG = b"\x81\x00\x00\x05"


def with_header(data: bytes, *, flags: int = 0, kind: int = 0) -> bytes:
    """Return a frame with this in its header."""
    return HEADER.pack(flags, kind, 54, 1000 if kind else 0, 34, 16, 0) + data[HEADER.size :]


async def test_buffer_that_no_frame_fits_into_is_given_back_and_the_next_one_is_used() -> None:
    """Where buffers are not merged, it would be in the way of all others for ever."""
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, PLAIN, 0)
        for size in (5, HEADER.size, HEADER.size + 13, 200):
            queue.submit([], [size])
        assert give(await port.until_receiving(), frame(60))
        *short, full = await queue.wait(4)
        assert [len(b"".join(parts)) for parts in short] == [0, 0, 0]
        assert b"".join(full)[HEADER.size :] == frame(60)[HEADER.size :]


async def test_short_buffers_that_are_merged_are_filled_one_after_the_other() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        for size in (5, 8, 1, 200):
            queue.submit([], [size])
        assert give(await port.until_receiving(), frame(60))
        got = b"".join(part for (part,) in await queue.wait(4))
        assert got[10:12] == b"\4\0"
        assert got[HEADER.size :] == frame(60)[HEADER.size :]


@pytest.mark.parametrize("turned_on", [NetFeature.NONE, NetFeature.GUEST_CSUM])
async def test_flags_are_0_for_a_guest_that_does_not_know_them(turned_on: NetFeature) -> None:
    """A tap says DATA_VALID of what came over a real network, whoever reads it."""
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, Feature(MERGING | turned_on), 0)
        queue.submit([], [200])
        assert give(await port.until_receiving(), with_header(frame(60), flags=HeaderFlag.DATA_VALID))
        ((got,),) = await queue.wait()
        assert got[0] == (HeaderFlag.DATA_VALID if turned_on else 0)


@pytest.mark.parametrize("told", [None, MTU])
async def test_guest_gets_no_frame_that_is_longer_than_its_mtu(told: int | None) -> None:
    """Be it the one that we show to the driver, or the one that a front-end does."""
    port = TestPort()
    device = Net(port, mtu=9000 if told else MTU)
    async with attached(device) as front:
        await front.negotiate(Feature(MERGING | NetFeature.MTU | NetFeature.GUEST_CSUM))
        if told is not None:
            await front.request(NetSetMtu(told))
        await front.share_memory()
        queue = front.queue(0, 64)
        await queue.start()
        for _ in range(10):
            queue.submit([], [4000])
        receiver = await port.until_receiving()

        async def fits(data: bytes) -> bool:
            before = device.to_guest.frames
            assert give(receiver, data)
            return device.to_guest.frames > before

        tagged = frame(LONGEST + 5)
        tagged = tagged[: HEADER.size + 12] + VLAN_TAG + tagged[HEADER.size + 16 :]
        assert await fits(frame(LONGEST))
        assert not await fits(frame(LONGEST + 1))
        assert await fits(tagged[:-1])
        assert not await fits(tagged)
        assert await fits(with_header(frame(3000), flags=HeaderFlag.NEEDS_CSUM, kind=GsoType.TCPV4))
        assert device.to_guest.dropped == 2


async def test_without_an_mtu_frames_may_be_of_any_length() -> None:
    port = TestPort()
    device = Net(port, mtu=MTU)
    async with attached(device) as front:
        (queue,) = await begin(front, MERGING, 0)
        queue.submit([], [4000])
        assert give(await port.until_receiving(), frame(3000))
        assert await queue.wait()
        assert device.to_guest.dropped == 0


class OnDemand(TestPort):
    """Gives a frame to the guest as soon as it is asked to, also where it was just told to stop."""

    def __init__(self, pairs: int = 1) -> None:
        super().__init__(pairs)
        self.arrives = trio.Event()
        self.given: list[bool] = []

    async def receive(self, pair: int, receiver: Receiver) -> None:
        if pair == self.queue_pairs - 1:
            await self.arrives.wait()
            self.given.append(give(receiver, frame(60)))
        await super().receive(pair, receiver)


@pytest.mark.parametrize("pairs", [1, 2])
async def test_pair_that_is_no_longer_used_gets_nothing_from_then_on(pairs: int) -> None:
    port = OnDemand(pairs)
    device = Net(port)
    async with attached(device) as front:
        features = Feature(MERGING | NetFeature.MQ) if pairs > 1 else MERGING
        (queue,) = await begin(front, features, 2 * pairs - 2)
        queue.submit([], [200])
        await wait_all_tasks_blocked()
        port.arrives.set()
        if pairs > 1:
            device.use_pairs(1)
        else:
            device.set_link(False)
        await wait_all_tasks_blocked()
        assert port.given == [False]
        assert queue.collect() == []
        device.use_pairs(pairs)
        device.set_link(True)
        await wait_all_tasks_blocked()
        assert port.given == [False, True]
        assert await queue.wait()
