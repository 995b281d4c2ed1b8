"""The network device's frames both ways, with a port that shows what comes through."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import SetVringKick
from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER
from tests.vhost_user.devices.net.driver import MERGING, PLAIN, begin, frame, give, views
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached
from vhost_user.buffers import copy
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.port import MAX_FRAME, ROOM_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence


# Sending


@pytest.mark.parametrize("cut", [(), (12,), (5, 12, 30), (100,)])
async def test_frame_of_the_guest_reaches_the_port_however_it_is_cut_up(cut: Sequence[int]) -> None:
    port = TestPort()
    sent = frame(200)
    edges = [0, *cut, len(sent)]
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, PLAIN, 1)
        parts = [sent[a:b] for a, b in pairwise(edges)]
        assert await queue.exchange(parts, []) == []
    assert port.sent == [(0, sent)]
    assert port.flushes


async def test_port_that_is_full_is_waited_for_and_nothing_is_lost() -> None:
    port = TestPort()
    frames = [frame(100, seed=number) for number in range(8)]
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, PLAIN, 1)
        port.is_full = True
        for each in frames:
            queue.submit([each])
        await wait_all_tasks_blocked()
        assert queue.collect() == []
        assert port.sent == []
        port.make_room()
        assert len(await queue.wait(len(frames))) == len(frames)
    assert [sent for _, sent in port.sent] == frames


async def test_stop_takes_frames_that_wait_for_the_port_away_and_a_start_goes_on_with_them() -> None:
    port = TestPort()
    port.is_full = True
    device = Net(port)
    device.drain_seconds = 60
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        for number in range(3):
            queue.submit([frame(60, seed=number)])
        await wait_all_tasks_blocked()
        assert await queue.stop() == 0
        port.is_full = False
        await queue.start()
        assert len(await queue.wait(3)) == 3
    assert [sent for _, sent in port.sent] == [frame(60, seed=number) for number in range(3)]


@pytest.mark.parametrize("size", [0, 1, 11, 25, MAX_FRAME + 1])
async def test_what_is_no_frame_is_dropped_and_given_back(size: int) -> None:
    port = TestPort()
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        queue.submit([bytes(size)] if size else [], [] if size else [64])
        assert await queue.wait() == [[b""] if not size else []]
        assert device.from_guest.dropped == 1
        assert await queue.exchange([frame(60)], []) == []
    assert port.sent == [(0, frame(60))]


async def test_statistics_count_frames_without_their_headers() -> None:
    device = Net(TestPort())
    async with attached(device) as front:
        rx, tx = await begin(front, MERGING, 0, 1)
        await tx.exchange([frame(100)], [])
        rx.submit([], [2000])
        assert give(await device.port.until_receiving(), frame(300))  # type: ignore[attr-defined]
        await rx.wait()
        assert device.net.statistics() == {
            "to_guest_frames": 1,
            "to_guest_bytes": 300,
            "to_guest_dropped": 0,
            "to_guest_filtered": 0,
            "from_guest_frames": 1,
            "from_guest_bytes": 100,
            "from_guest_dropped": 0,
        }


# Receiving


@pytest.mark.parametrize("features", [PLAIN, MERGING, Feature(MERGING | Feature.RING_PACKED)])
@pytest.mark.parametrize("sizes", [[2000], [12, 1988], [5, 4, 3, 1, 1987]])
async def test_frame_for_the_guest_has_one_chain(features: Feature, sizes: list[int]) -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, features, 0)
        queue.submit([], sizes)
        sent = frame(500)
        assert give(await port.until_receiving(), sent)
        (parts,) = await queue.wait()
        got = b"".join(parts)
        assert struct.unpack_from("<H", got, 10) == (1,)
        assert got[HEADER.size :] == sent[HEADER.size :]


async def test_large_frame_goes_over_chains_that_are_all_seen_at_once() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0, size=64)
        for _ in range(50):
            queue.submit([], [1526])
        receiver = await port.until_receiving()
        for size in (60, 65_000, 3000):
            sent = frame(size, seed=size)
            assert receiver.put(views(sent), len(sent))
            await wait_all_tasks_blocked()
            assert queue.collect() == []
            receiver.flush()
            chains = -(-len(sent) // 1526)
            parts = queue.collect()
            assert len(parts) == chains
            got = b"".join(part for (part,) in parts)
            assert struct.unpack_from("<H", got, 10) == (chains,)
            assert got[HEADER.size :] == sent[HEADER.size :]


async def test_port_that_reads_has_our_own_memory_for_what_the_guest_gives_later() -> None:
    port = TestPort()
    sent = frame(9000)
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        for _ in range(2):
            queue.submit([], [1526])
        receiver = await port.until_receiving()
        window = receiver.window()
        assert window is not None
        copy(views(sent), window, len(sent))
        receiver.fill(len(sent))
        assert receiver.window() is None
        assert receiver.room(60) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.until_room)
            for _ in range(4):
                queue.submit([], [1526])
            parts = await queue.wait(6)
            queue.submit([], [1526])
        got = b"".join(part for (part,) in parts)
        assert struct.unpack_from("<H", got, 10) == (6,)
        assert got[HEADER.size :] == sent[HEADER.size :]


async def test_frame_that_the_guest_never_has_room_for_is_dropped(autojump_clock: MockClock) -> None:
    """A ring that is smaller than a frame must not stand still for ever."""
    port = TestPort()
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, MERGING, 0)
        queue.submit([], [1526])
        receiver = await port.until_receiving()
        assert receiver.window() is not None
        receiver.fill(9000)
        began = trio.current_time()
        assert not await receiver.until_room()
        assert trio.current_time() - began == ROOM_SECONDS
        assert not await receiver.until_room(9000)
        assert device.to_guest.dropped == 1
        assert give(receiver, frame(60))
        assert await queue.wait()


async def test_frame_that_is_too_large_for_a_driver_that_merges_none_is_dropped() -> None:
    port = TestPort()
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 0)
        for _ in range(2):
            queue.submit([], [200])
        receiver = await port.until_receiving()
        assert give(receiver, frame(300))
        assert device.to_guest.dropped == 1
        assert give(receiver, frame(60))
        ((got,),) = await queue.wait()
        assert got[HEADER.size :] == frame(60)[HEADER.size :]


async def test_buffer_that_cannot_be_written_to_is_given_back_and_the_next_one_is_used() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        queue.submit([b"read-only"])
        queue.submit([], [2000])
        assert give(await port.until_receiving(), frame(60))
        assert [len(b"".join(parts)) for parts in await queue.wait(2)] == [0, 72]


async def test_port_waits_for_room_until_the_driver_kicks() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        receiver = await port.until_receiving()
        assert receiver.window() is None
        assert not give(receiver, frame(60))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(receiver.until_room)
            await wait_all_tasks_blocked()
            queue.submit([], [1526])
        assert give(receiver, frame(60))
        assert await queue.wait()


async def test_buffers_in_stock_are_there_again_after_a_stop() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        for _ in range(5):
            queue.submit([], [1526])
        assert give(await port.until_receiving(), frame(60))
        await queue.wait()
        assert await queue.stop() == 1
        assert port.receivers == {}
        await queue.start()
        for number in range(4):
            assert give(await port.until_receiving(), frame(100, seed=number))
        assert [parts[0][HEADER.size :] for parts in await queue.wait(4)] == [
            frame(100, seed=number)[HEADER.size :] for number in range(4)
        ]


# Rings that are disabled


async def test_disabled_queues_discard_what_is_sent_and_receive_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    port = TestPort()
    device = Net(port)
    async with attached(device) as front:
        rx, tx = await begin(front, MERGING, 0, 1)
        for queue in (rx, tx):
            await queue.enable(False)
        rx.submit([], [1526])
        assert await tx.exchange([frame(60)], []) == []
        assert port.sent == []
        assert port.receivers == {}
        for queue in (rx, tx):
            await queue.enable()
        assert await tx.exchange([frame(61)], []) == []
        assert port.sent == [(0, frame(61))]
        assert give(await port.until_receiving(), frame(60))
        assert await rx.wait()
        assert device.from_guest.dropped == 1
    assert "is served no more" not in caplog.text


async def test_ring_that_is_started_before_it_is_enabled_is_discarded_from() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        await front.negotiate(MERGING)
        await front.share_memory()
        queue = front.queue(1)
        await queue.set_up()
        await front.request(SetVringKick(1, fds=(queue.kick.dup(),)))
        queue.submit([frame(60)])
        assert await queue.wait() == [[]]
        await queue.enable()
        assert await queue.exchange([frame(70)], []) == []
    assert port.sent == [(0, frame(70))]


def test_device_closes_its_port() -> None:
    port = TestPort()
    with Net(port):
        assert not port.closed
    assert port.closed


# Copying from guest to guest


@given(
    source=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    target=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    length=st.integers(0, 300),
)
def test_copy_is_of_so_many_bytes_however_both_are_cut_up(
    source: list[int], target: list[int], length: int
) -> None:
    length = min(length, sum(source), sum(target))
    data = bytes(place % 256 for place in range(1, sum(source) + 1))
    pieces, at = [], 0
    for size in source:
        pieces.append(memoryview(data)[at : at + size])
        at += size
    room = [memoryview(bytearray(size)) for size in target]
    copy(pieces, room, length)
    assert b"".join(room) == data[:length].ljust(sum(target), b"\0")
