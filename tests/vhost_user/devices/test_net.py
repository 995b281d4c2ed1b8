"""The network device, with a port that shows what comes through."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import (
    Config,
    ConfigChange,
    GetConfig,
    NetSetMtu,
    ProtocolFeature,
    ResetDevice,
    SendRarp,
    SetVringKick,
)
from protocol.virtio.features import Feature
from protocol.virtio.net import (
    CONFIG_SIZE,
    CONTROL_HEADER,
    GUEST_OFFLOADS,
    HEADER,
    ControlClass,
    MacCommand,
    NetConfig,
    NetFeature,
    NetStatus,
    RxCommand,
    VlanCommand,
    build_mac_tables,
)
from tests.vhost_user.devices.net_port import TestPort
from tests.vhost_user.frontend import DEFAULT_FEATURES, Frontend, Queue, attached, until
from vhost_user.devices.net import Net
from vhost_user.devices.net_host import MAX_FRAME, ROOM_SECONDS, copy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.net_host import Receiver

MAC = bytes.fromhex("525400aabbcc")
OTHER = bytes.fromhex("525400ddeeff")
BROADCAST = b"\xff" * 6
GROUP = bytes.fromhex("01005e000001")
BLANK = bytes(HEADER.size)
PLAIN = Feature(DEFAULT_FEATURES)
MERGING = Feature(DEFAULT_FEATURES | NetFeature.MRG_RXBUF)
CONTROLLED = Feature(
    MERGING
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.STATUS
)
OK, ERR = [b"\0"], [b"\1"]


def frame(size: int, *, to: bytes = MAC, seed: int = 0) -> bytes:
    """Return an Ethernet frame of so many bytes, behind a header without anything."""
    body = bytes((place * 7 + seed) % 251 for place in range(size - 14))
    return BLANK + to + OTHER + b"\x08\x00" + body


def views(data: bytes) -> list[memoryview]:
    """Return a frame as a port has it, its header and the rest apart."""
    return [memoryview(data[: HEADER.size]), memoryview(data[HEADER.size :])]


def give(receiver: Receiver, data: bytes) -> bool:
    """Put a frame in, and show it."""
    done = receiver.put(views(data), len(data))
    receiver.flush()
    return done


async def begin(front: Frontend, features: Feature, *indices: int, size: int = 16) -> list[Queue]:
    """Negotiate, and start these queues."""
    await front.negotiate(features)
    await front.share_memory()
    queues = [front.queue(index, size) for index in indices]
    for queue in queues:
        await queue.start()
    return queues


async def config(front: Frontend) -> NetConfig:
    return NetConfig.decode((await front.ask(Config, GetConfig(0, CONFIG_SIZE))).data)


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


async def test_disabled_queues_discard_what_is_sent_and_receive_nothing() -> None:
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


# The control queue


def command(kind: int, number: int, data: bytes = b"") -> list[bytes]:
    return [CONTROL_HEADER.pack(kind, number), *([data] if data else [])]


async def filtered(device: Net, receiver: Receiver, *frames: bytes) -> list[bool]:
    """Return which of the frames go through to the guest."""
    through = []
    for each in frames:
        before = device.to_guest.frames
        assert give(receiver, each)
        through.append(device.to_guest.frames > before)
    return through


async def test_filters_are_what_the_driver_makes_them() -> None:
    port = TestPort()
    device = Net(port, mac=MAC)
    own, other, group, everyone = (frame(60, to=to) for to in (MAC, OTHER, GROUP, BROADCAST))
    async with attached(device) as front:
        rx, control = await begin(front, CONTROLLED, 0, 2, size=64)
        for _ in range(60):
            rx.submit([], [200])
        receiver = await port.until_receiving()

        async def after(*steps: tuple[RxCommand, int]) -> list[bool]:
            for mode, on in steps:
                assert await control.exchange(command(ControlClass.RX, mode, bytes([on])), [1]) == OK
            return await filtered(device, receiver, own, other, group, everyone)

        assert await after() == [True] * 4
        assert await after((RxCommand.PROMISC, 0)) == [True, False, False, True]
        assert await after((RxCommand.ALLMULTI, 1)) == [True, False, True, True]
        assert await after((RxCommand.ALLUNI, 1), (RxCommand.NOBCAST, 1)) == [True, True, True, False]
        assert await after((RxCommand.NOMULTI, 1), (RxCommand.NOUNI, 1)) == [False] * 4
        steps = [(mode, 0) for mode in RxCommand]
        assert await after(*steps) == [True, False, False, True]
        tables = build_mac_tables([OTHER], [GROUP])
        assert await control.exchange(command(ControlClass.MAC, MacCommand.TABLE_SET, tables), [1]) == OK
        assert await after() == [True, True, True, True]
        assert device.to_guest.filtered == 2 + 1 + 1 + 4 + 2


async def test_frames_of_a_vlan_go_through_that_the_driver_names() -> None:
    port = TestPort()
    device = Net(port, mac=MAC)

    def tagged(vlan: int) -> bytes:
        return BLANK + MAC + OTHER + struct.pack(">HH", 0x8100, 0xE000 | vlan) + bytes(46)

    async with attached(device) as front:
        rx, control = await begin(front, Feature(CONTROLLED | NetFeature.CTRL_VLAN), 0, 2, size=64)
        for _ in range(20):
            rx.submit([], [100, 100])
        receiver = await port.until_receiving()
        await control.exchange(command(ControlClass.RX, RxCommand.PROMISC, b"\0"), [1])
        for number, expected in ((VlanCommand.ADD, True), (VlanCommand.DEL, False)):
            vlan = struct.pack("<H", 5)
            assert await control.exchange(command(ControlClass.VLAN, number, vlan), [1]) == OK
            through = await filtered(device, receiver, tagged(5), tagged(6), frame(60))
            assert through == [expected, False, True]
        for data in (b"", b"\0", b"\0\x10", b"\0\0\0"):
            assert await control.exchange(command(ControlClass.VLAN, 0, data), [1]) == ERR


async def test_address_that_the_driver_chooses_is_in_the_configuration_until_a_reset() -> None:
    device = Net(TestPort(), mac=MAC)
    async with attached(device) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        assert (await config(front)).mac == MAC
        with device.net.events() as events:
            assert await control.exchange(command(ControlClass.MAC, 1, OTHER), [1]) == OK
            assert (await anext(events)).data == {"address": OTHER.hex(":")}
        assert (await config(front)).mac == OTHER
        assert device.net.mac() == OTHER.hex(":")
        await front.request(ResetDevice())
        assert (await config(front)).mac == MAC


async def test_guest_announces_itself_when_it_is_asked_to() -> None:
    device = Net(TestPort())
    async with attached(device) as front, trio.open_nursery() as nursery:
        with pytest.raises(ValueError, match="the guest cannot announce itself"):
            device.net.announce()
        await front.negotiate(CONTROLLED)
        await front.open_channel(nursery)
        await front.share_memory()
        control = front.queue(2)
        await control.start()
        device.net.announce()
        assert isinstance((await front.until_asked())[0], ConfigChange)
        assert (await config(front)).status == NetStatus.LINK_UP | NetStatus.ANNOUNCE
        with device.net.events() as events:
            assert await control.exchange(command(ControlClass.ANNOUNCE, 0), [1]) == OK
            assert (await anext(events)).name == "announced"
        assert (await config(front)).status == NetStatus.LINK_UP
        nursery.cancel_scope.cancel()


async def test_offloads_of_the_guest_are_changed_among_those_that_it_turned_on() -> None:
    port = TestPort()
    some = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
    async with attached(Net(port)) as front:
        (control,) = await begin(front, Feature(CONTROLLED | some), 2)
        assert port.guest_takes == some
        for wanted, answer in ((NetFeature.GUEST_CSUM, OK), (NetFeature.GUEST_UFO, ERR), (some, OK)):
            data = struct.pack("<Q", wanted)
            assert await control.exchange(command(ControlClass.GUEST_OFFLOADS, 0, data), [1]) == answer
            assert port.guest_takes == (wanted if answer == OK else NetFeature.GUEST_CSUM)


async def test_pairs_are_used_as_the_driver_says() -> None:
    port = TestPort(3)
    async with attached(Net(port)) as front:
        queues = await begin(front, Feature(CONTROLLED | NetFeature.MQ), 0, 2, 4, 6)
        control = queues[-1]
        await port.until_receiving(0)
        assert set(port.receivers) == {0}
        for pairs in (3, 1, 2):
            data = struct.pack("<H", pairs)
            assert await control.exchange(command(ControlClass.MQ, 0, data), [1]) == OK
            await wait_all_tasks_blocked()
            assert set(port.receivers) == set(range(pairs))
        for pairs in (0, 4):
            data = struct.pack("<H", pairs)
            assert await control.exchange(command(ControlClass.MQ, 0, data), [1]) == ERR


async def test_front_end_that_keeps_the_control_queue_has_all_pairs() -> None:
    port = TestPort(2)
    async with attached(Net(port)) as front:
        _, _, tx = await begin(front, Feature(MERGING | NetFeature.MQ), 0, 2, 3)
        await port.until_receiving(1)
        await tx.exchange([frame(60)], [])
        assert port.sent == [(1, frame(60))]


async def test_queue_2_is_the_control_queue_without_mq_and_a_pairs_with_it() -> None:
    port = TestPort(2)
    async with attached(Net(port)) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        assert await control.exchange(command(ControlClass.RX, RxCommand.PROMISC, b"\1"), [1]) == OK


@pytest.mark.parametrize(
    "readable",
    [
        [],
        [b"\0"],
        command(0, 0),
        command(0, 0, b"\2"),
        command(0, 0, b"\0\0"),
        command(0, 6, b"\0"),
        command(1, 0, b"\1\0\0\0"),
        command(1, 0, b"\xff\xff\xff\xff" * 4),
        command(1, 1, b"short"),
        command(2, 0, b"\0\0"),
        command(4, 0, b"\1\0"),
        command(99, 0, b"\0"),
        command(1, 0, bytes(70_000)),
    ],
)
async def test_bad_command_is_answered_with_an_error(readable: list[bytes]) -> None:
    async with attached(Net(TestPort())) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        assert await control.exchange(readable, [1]) == ERR
        assert await control.exchange(command(ControlClass.RX, RxCommand.PROMISC, b"\1"), [1]) == OK


async def test_command_without_room_for_its_answer_is_given_back() -> None:
    async with attached(Net(TestPort())) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        assert await control.exchange(command(ControlClass.RX, RxCommand.PROMISC, b"\0"), []) == []
        assert await control.exchange(command(ControlClass.RX, RxCommand.PROMISC, b"\0"), [1, 8]) == [
            b"\0",
            b"",
        ]


# What changes from outside


async def test_link_goes_down_and_up_and_the_guest_is_told() -> None:
    port = TestPort()
    device = Net(port)
    async with attached(device) as front, trio.open_nursery() as nursery:
        await front.negotiate(Feature(MERGING | NetFeature.STATUS))
        await front.open_channel(nursery)
        await front.share_memory()
        rx, tx = front.queue(0), front.queue(1)
        await rx.start()
        await tx.start()
        await port.until_receiving()
        with device.net.events() as events:
            device.net.set_link(False)
            assert (await anext(events)).data == {"up": False}
        assert len(await front.until_asked()) == 1
        assert (await config(front)).status == 0
        await wait_all_tasks_blocked()
        assert port.receivers == {}
        assert await tx.exchange([frame(60)], []) == []
        assert port.sent == []
        assert (device.from_guest.dropped, device.net.link()) == (1, False)

        device.net.set_link(True)
        await front.until_asked(2)
        assert (await config(front)).status == NetStatus.LINK_UP
        rx.submit([], [200])
        assert give(await port.until_receiving(), frame(60))
        await rx.wait()
        await tx.exchange([frame(60)], [])
        assert len(port.sent) == 1
        nursery.cancel_scope.cancel()


async def test_link_of_the_port_counts_too() -> None:
    port = TestPort()
    device = Net(port)
    async with attached(device) as front:
        await begin(front, MERGING, 0)
        await port.until_receiving()
        port.link_up = False
        assert port.link_changed is not None
        port.link_changed()
        await until(lambda: not port.receivers)
        assert not device.net.link()
        assert (await config(front)).status == 0


async def test_rarp_tells_the_network_where_the_guest_is() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        await begin(front, MERGING, 1)
        assert ProtocolFeature.RARP in front.session.protocol_features
        await front.request(SendRarp(MAC))
    ((pair, sent),) = port.sent
    assert (pair, sent[: HEADER.size], len(sent)) == (0, BLANK, HEADER.size + 60)
    packet = sent[HEADER.size :]
    assert packet[:14] == BROADCAST + MAC + b"\x80\x35"
    assert packet[14:42] == struct.pack(">HHBBH6s4s6s4s", 1, 0x800, 6, 4, 3, MAC, bytes(4), MAC, bytes(4))


async def test_mtu_is_offered_where_there_is_one() -> None:
    port = TestPort()
    async with attached(Net(port)) as front:
        await front.negotiate()
        assert NetFeature.MTU not in NetFeature(front.session.negotiation.offered)
    async with attached(Net(port, mtu=9000)) as front:
        await front.negotiate()
        assert NetFeature.MTU in NetFeature(front.session.negotiation.offered)
        assert (await config(front)).mtu == 9000
        await front.request(NetSetMtu(9000))


async def test_what_is_offered_is_what_the_port_can_do() -> None:
    port = TestPort(2)
    port.offloads = NetFeature.CSUM
    async with attached(Net(port)) as front:
        await front.negotiate()
        offered = NetFeature(front.session.negotiation.offered)
        assert offered & (GUEST_OFFLOADS | NetFeature.CSUM | NetFeature.MQ) == NetFeature.CSUM | NetFeature.MQ
        assert (await config(front)).max_virtqueue_pairs == 2


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
