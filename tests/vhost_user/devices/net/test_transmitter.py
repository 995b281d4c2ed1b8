"""When the guest gets back what it has sent: at once, but for TCP's bare acknowledgements."""

from __future__ import annotations

import struct

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER
from tests.vhost_user.devices.net.driver import BLANK, MAC, MERGING, OTHER, begin, frame, give
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.frames import only_acknowledges
from vhost_user.devices.net.transmitter import LATE_SECONDS, MOST_LATE


def tcp(data: bytes = b"", *, version: int = 4, flags: int = 0x10, options: bytes = bytes(12)) -> bytes:
    """Return a TCP segment as an Ethernet frame."""
    offset = (20 + len(options)) // 4
    segment = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, offset << 4, flags, 5, 6, 0) + options + data
    if version == 6:
        return OTHER + MAC + b"\x86\xdd" + struct.pack(">IHBB32x", 6 << 28, len(segment), 6, 64) + segment
    ip = struct.pack(">BBHHHBBH8x", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0)
    return OTHER + MAC + b"\x08\x00" + ip + segment


ACK = BLANK + tcp()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [b"", bytes(12), bytes(40)])
def test_acknowledgement_is_known(version: int, options: bytes) -> None:
    assert only_acknowledges(tcp(version=version, options=options))


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_more_than_an_acknowledgement_or_none_is_not_taken_for_one(version: int) -> None:
    assert not only_acknowledges(tcp(b"x", version=version))
    for flags in (0x02, 0x11, 0x12, 0x14, 0x18):
        assert not only_acknowledges(tcp(version=version, flags=flags))
    whole = tcp(version=version, options=b"")
    for length in range(len(whole)):
        assert not only_acknowledges(whole[:length])
    assert not only_acknowledges(frame(60)[HEADER.size :])


async def test_acknowledgement_is_sent_at_once_and_completed_with_what_the_guest_gets() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        rx, tx = await begin(front, MERGING, 0, 1)
        tx.submit([ACK])
        await wait_all_tasks_blocked()
        assert port.sent == [(0, ACK)]
        assert tx.collect() == []
        rx.submit([], [2000])
        assert give(await port.until_receiving(), frame(60))
        assert tx.collect() == [[]]


@pytest.mark.parametrize("other", [BLANK + tcp(b"x"), BLANK + tcp(flags=0x11), frame(60)])
async def test_acknowledgements_are_completed_with_the_next_other_frame(other: bytes) -> None:
    async with attached(Net(TestPort())) as front:
        (tx,) = await begin(front, MERGING, 1)
        tx.submit([ACK])
        tx.submit([ACK])
        await wait_all_tasks_blocked()
        assert tx.collect() == []
        tx.submit([other])
        assert len(await tx.wait(3)) == 3


async def test_acknowledgements_are_completed_when_there_are_many() -> None:
    async with attached(Net(TestPort())) as front:
        (tx,) = await begin(front, MERGING, 1, size=64)
        for _ in range(MOST_LATE + 1):
            tx.submit([ACK])
            await wait_all_tasks_blocked()
        assert len(await tx.wait(MOST_LATE + 1)) == MOST_LATE + 1


async def test_acknowledgement_is_completed_soon_if_nothing_else_happens(
    autojump_clock: MockClock,
) -> None:
    async with attached(Net(TestPort())) as front:
        (tx,) = await begin(front, MERGING, 1)
        for _ in range(2):
            began = trio.current_time()
            tx.submit([ACK])
            assert await tx.wait() == [[]]
            assert 0 < trio.current_time() - began <= LATE_SECONDS


@pytest.mark.parametrize("features", [MERGING, Feature(MERGING | Feature.RING_PACKED)])
async def test_queue_that_stops_has_all_completed(features: Feature) -> None:
    async with attached(Net(TestPort())) as front:
        (tx,) = await begin(front, features, 1)
        tx.submit([ACK])
        await wait_all_tasks_blocked()
        await tx.stop()
        assert tx.collect() == [[]]


async def test_port_that_is_full_does_not_keep_what_was_sent() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        (tx,) = await begin(front, MERGING, 1)
        tx.submit([ACK])
        await wait_all_tasks_blocked()
        port.is_full = True
        tx.submit([ACK])
        assert await tx.wait() == [[]]
        port.make_room()
