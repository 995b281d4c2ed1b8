"""What the guest commands over the network device's control queue, and what is changed from outside."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import ConfigChange, NetSetMtu, ProtocolFeature, ResetDevice, SendRarp
from protocol.virtio.features import Feature
from protocol.virtio.net import (
    CONTROL_HEADER,
    GUEST_OFFLOADS,
    HEADER,
    ControlClass,
    MacCommand,
    NetFeature,
    NetStatus,
    RxCommand,
    VlanCommand,
    build_mac_tables,
)
from tests.vhost_user.devices.net.driver import (
    BLANK,
    BROADCAST,
    CONTROLLED,
    GROUP,
    MAC,
    MERGING,
    OTHER,
    begin,
    config,
    frame,
    give,
)
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached, until
from vhost_user.devices.net.device import Net

if TYPE_CHECKING:
    from vhost_user.devices.net.ports.port import Receiver

OK, ERR = [b"\0"], [b"\1"]


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
