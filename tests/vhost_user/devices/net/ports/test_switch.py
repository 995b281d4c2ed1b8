"""Switch and link between ports: who gets which frame, and what a guest that does not listen is kept."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.features import Feature
from protocol.virtio.net import HEADER, LEGACY_HEADER_SIZE, GsoType, NetFeature
from tests.vhost_user.devices.net.ends import BROADCAST, EVERYTHING, End, frame, mac, plugged_in
from tests.vhost_user.devices.net.ports.test_offload import check_tcp, header, tcp_frame
from vhost_user.devices.net.ports.backlog import MOST_BYTES, MOST_FRAMES
from vhost_user.devices.net.ports.switch import Link, Switch

if TYPE_CHECKING:
    from collections.abc import Sequence


def taken(ends: Sequence[End]) -> list[list[bytes]]:
    return [end.take() for end in ends]


async def test_switch_learns_who_is_where() -> None:
    async with plugged_in(*Switch(3).ports) as ends:
        unknown = frame(mac(1), mac(0), b"to somebody not heard of yet")
        ends[0].send(unknown)
        assert taken(ends) == [[], [unknown], [unknown]]
        answer = frame(mac(0), mac(1))
        ends[1].send(answer)
        assert taken(ends) == [[answer], [], []]
        known = frame(mac(1), mac(0), b"again")
        ends[0].send(known)
        assert taken(ends) == [[], [known], []]


@pytest.mark.parametrize("to", [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("0180c2000000")])
async def test_what_is_for_several_goes_to_all_others(to: bytes) -> None:
    async with plugged_in(*Switch(3).ports) as ends:
        ends[1].send(frame(to, mac(1)))
        assert taken(ends) == [[frame(to, mac(1))], [], [frame(to, mac(1))]]


async def test_no_frame_comes_back() -> None:
    async with plugged_in(*Switch(2).ports) as ends:
        ends[0].send(frame(BROADCAST, mac(0)))
        ends[0].send(frame(BROADCAST, mac(7)))
        taken(ends)
        ends[0].send(frame(mac(7), mac(0), b"to a neighbour behind the same port"))
        assert taken(ends) == [[], []]


async def test_guest_that_moves_is_found_again(autojump_clock: MockClock) -> None:
    switch = Switch(3, age=10)
    async with plugged_in(*switch.ports) as ends:
        ends[0].send(frame(BROADCAST, mac(7)))
        ends[1].send(frame(BROADCAST, mac(7)))
        taken(ends)
        ends[2].send(frame(mac(7), mac(2)))
        assert [len(got) for got in taken(ends)] == [0, 1, 0]
        await trio.sleep(11)
        ends[2].send(frame(mac(7), mac(2)))
        assert [len(got) for got in taken(ends)] == [1, 1, 0]
        assert switch.mac_table() == [(mac(2), 2, 0)]


async def test_guest_that_leaves_is_found_at_another_port_before_it_says_anything() -> None:
    switch = Switch(4)
    async with plugged_in(switch.ports[0], switch.ports[1]) as (sender, other):
        async with plugged_in(switch.ports[2]) as (end,):
            end.send(frame(BROADCAST, mac(7)))
        taken([sender, other])
        sent = frame(mac(7), mac(0))
        async with plugged_in(switch.ports[3]) as (end,):
            sender.send(sent)
            assert taken([other, end]) == [[sent], [sent]]
        async with plugged_in(switch.ports[2]) as (end,):
            sender.send(sent)
            assert taken([other, end]) == [[], [sent]]


async def test_port_that_is_pulled_out_is_forgotten() -> None:
    switch = Switch(3)
    async with plugged_in(*switch.ports) as ends:
        ends[0].send(frame(BROADCAST, mac(0)))
        switch.ports[0].set_link(False)
        assert switch.mac_table() == []


@pytest.mark.parametrize("pieces", [1, 2, 9, 40])
@pytest.mark.parametrize("size", [0, 1, 1000, 65000])
async def test_frames_pass_as_they_are(size: int, pieces: int) -> None:
    async with plugged_in(*Switch(2).ports) as ends:
        sent = frame(BROADCAST, mac(0), bytes(range(256)) * (size // 256 + 1), header=bytes(12))[: 26 + size]
        ends[0].send(sent, pieces=pieces)
        assert ends[1].take() == [sent]


async def test_frames_for_nobody_are_dropped() -> None:
    switch = Switch(2)
    async with plugged_in(switch.ports[1]) as (end,):
        end.send(frame(BROADCAST, mac(1)))
        end.send(frame(mac(0), mac(1)))
    assert switch.ports[0].dropped_to_guest == 0

    async with plugged_in(switch.ports[0]) as (end,):
        end.send(frame(BROADCAST, mac(0)))
    async with plugged_in(switch.ports[1]) as (end,):
        end.send(frame(mac(0), mac(1), b"to one that has left"))
    assert switch.ports[0].dropped_to_guest == 1


async def test_guest_that_gives_no_room_holds_up_nobody_and_misses_nothing_at_first() -> None:
    switch = Switch(3)
    async with plugged_in(*switch.ports) as ends:
        ends[0].slots = 2
        sent = [frame(BROADCAST, mac(1), number.to_bytes(2, "big")) for number in range(MOST_FRAMES + 12)]
        for each in sent:
            ends[1].send(each)
        assert len(ends[2].take()) == len(sent[:1000])
        assert ends[0].take() == sent[:2]
        assert switch.ports[0].dropped_to_guest == 10
        ends[0].give_room(3)
        await wait_all_tasks_blocked()
        ends[1].send(sent[0])  # has to wait behind the others
        ends[0].give_room(5000)
        await wait_all_tasks_blocked()
        assert ends[0].take() == [*sent[2:-10], sent[0]]


async def test_what_waits_for_a_guest_is_bounded_in_bytes() -> None:
    switch = Switch(2)
    async with plugged_in(*switch.ports) as ends:
        ends[0].slots = 0
        sent = frame(BROADCAST, mac(1), bytes(60000))
        fitting = MOST_BYTES // len(sent)
        for _ in range(fitting + 3):
            ends[1].send(sent)
        assert switch.ports[0].dropped_to_guest == 3


async def test_frame_that_a_guest_never_has_room_for_does_not_stay_in_the_way(
    autojump_clock: MockClock,
) -> None:
    switch = Switch(2)
    async with plugged_in(*switch.ports) as ends:
        ends[0].largest = 1526
        ends[1].send(frame(BROADCAST, mac(1), bytes(9000)))
        small = frame(BROADCAST, mac(1))
        ends[1].send(small)
        assert ends[0].take() == []
        await trio.sleep(2)
        assert ends[0].take() == [small]
        assert switch.ports[0].dropped_to_guest == 1


async def test_what_waits_for_a_guest_that_leaves_is_lost() -> None:
    switch = Switch(2)
    async with plugged_in(switch.ports[1]) as (sender,):
        async with plugged_in(switch.ports[0]) as (end,):
            end.slots = 0
            sender.send(frame(BROADCAST, mac(1)))
        async with plugged_in(switch.ports[0]) as (end,):
            sender.send(frame(BROADCAST, mac(1), b"new"))
            assert end.take() == [frame(BROADCAST, mac(1), b"new")]


async def test_large_segments_go_untouched_to_a_guest_that_takes_them() -> None:
    data, start = tcp_frame(4, bytes(60000))
    sent = header(start, kind=GsoType.TCPV4, size=1448) + BROADCAST + mac(0) + data[12:]
    async with plugged_in(*Switch(2).ports) as ends:
        ends[0].send(sent, pieces=20)
        assert ends[1].take() == [sent]


async def test_large_segments_are_cut_up_for_a_guest_that_does_not_take_them() -> None:
    data, start = tcp_frame(4, bytes(60000))
    sent = header(start, kind=GsoType.TCPV4, size=1448) + BROADCAST + mac(0) + data[12:]
    switch = Switch(2)
    async with plugged_in(*switch.ports, features=Feature(NetFeature.GUEST_CSUM)) as ends:
        ends[0].send(sent)
        got = ends[1].take()
        assert len(got) == 42
        assert sum(len(check_tcp(each, start, 14)) - 20 for each in got) == 60000
        switch.ports[1].set_offloads(NetFeature(EVERYTHING))
        ends[0].send(sent)
        assert ends[1].take() == [sent]


async def test_headers_that_say_what_cannot_be_are_dropped_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    switch = Switch(2)
    async with plugged_in(*switch.ports, features=Feature(0)) as ends:
        for _ in range(3):
            ends[0].send(frame(BROADCAST, mac(0), header=header(34, kind=GsoType.UDP, size=1448)))
        # No TCP is where the header says so, which is found where the work is to be done.
        ends[0].send(frame(BROADCAST, mac(0), bytes(90), header=header(34, kind=GsoType.TCPV4, size=1448)))
        assert ends[1].take() == []
    assert switch.ports[0].malformed == switch.ports[0].dropped_from_guest == 4
    (record,) = caplog.records
    assert record.getMessage().startswith("port 0 drops a frame from its guest")


@pytest.mark.parametrize("pieces", [1, 5])
async def test_legacy_driver_has_its_own_header(pieces: int) -> None:
    switch = Switch(2)
    async with (
        plugged_in(switch.ports[0]) as (new,),
        plugged_in(switch.ports[1], header_size=LEGACY_HEADER_SIZE) as (old,),
    ):
        new.send(frame(BROADCAST, mac(0), b"from the new one"), pieces=pieces)
        assert old.take() == [frame(BROADCAST, mac(0), b"from the new one")[2:]]
        old.send(frame(BROADCAST, mac(1), b"from the old one")[2:], pieces=pieces)
        assert new.take() == [frame(BROADCAST, mac(1), b"from the old one")]


async def test_header_is_the_one_that_was_checked() -> None:
    """Not the one that the guest has made of it meanwhile."""

    class Changing(Switch):
        def targets(self, source, addresses):  # type: ignore[no-untyped-def]
            view[:12] = header(34, kind=GsoType.TCPV4, size=1448)
            return super().targets(source, addresses)

    view = memoryview(bytearray(frame(BROADCAST, mac(0), b"data")))
    async with plugged_in(*Changing(2).ports) as ends:
        assert ends[0].port.send(0, [view], len(view))
        ends[0].port.flush(0)
        assert ends[1].take() == [frame(BROADCAST, mac(0), b"data")]


async def test_link_carries_everything_both_ways() -> None:
    link = Link()
    async with plugged_in(*link.ports) as ends:
        for to in (mac(0), mac(1), mac(9), BROADCAST):
            ends[0].send(frame(to, mac(0)))
            ends[1].send(frame(to, mac(1)))
        assert taken(ends) == [
            [frame(to, mac(1)) for to in (mac(0), mac(1), mac(9), BROADCAST)],
            [frame(to, mac(0)) for to in (mac(0), mac(1), mac(9), BROADCAST)],
        ]


async def test_both_ends_of_a_link_see_that_one_is_pulled_out() -> None:
    link = Link()
    seen: list[bool] = []
    link.ports[1].link_changed = lambda: seen.append(link.ports[1].link_up)
    link.ports[0].set_link(False)
    link.ports[0].set_link(True)
    assert seen == [False, True]
    link.ports[1].set_link(False)
    assert not link.ports[0].link_up


async def test_pairs_of_queues() -> None:
    """What came over a pair goes to the same one, where the other guest has it."""
    switch = Switch(2, queue_pairs=4)
    sender, first, second = End(switch.ports[0]), End(switch.ports[1]), End(switch.ports[1])
    for port in switch.ports:
        port.set_features(EVERYTHING, HEADER.size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch.ports[1].receive, 0, first)
        nursery.start_soon(switch.ports[1].receive, 2, second)
        await wait_all_tasks_blocked()
        for pair in range(4):
            sender.send(frame(BROADCAST, mac(0), bytes([pair])), pair=pair)
        nursery.cancel_scope.cancel()
    assert [each[-1] for each in first.take()] == [0, 1, 3]
    assert [each[-1] for each in second.take()] == [2]


def conversation(version: int, number: int, *, back: bool = False) -> bytes:
    """Return a frame of a TCP connection, or one of the other way."""
    a, b = (
        (mac(0), bytes([1]) * (4 if version == 4 else 16), number),
        (mac(1), bytes([2]) * (4 if version == 4 else 16), 80),
    )
    (source, source_ip, source_port), (to, to_ip, to_port) = (b, a) if back else (a, b)
    if version == 4:
        kind, ip = b"\x08\x00", struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
    else:
        kind, ip = b"\x86\xdd", struct.pack(">IHBB", 6 << 28, 20, 6, 64)
    tcp = struct.pack(">HH16x", source_port, to_port)
    return bytes(12) + to + source + kind + ip + source_ip + to_ip + tcp


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("pieces", [1, 30])
async def test_flow_stays_at_the_pair_that_it_began_with(version: int, pieces: int) -> None:
    """Over whichever pairs its sender sends: frames of one connection must not overtake each other."""
    switch = Switch(2, queue_pairs=4)
    sender, ends = End(switch.ports[0]), [End(switch.ports[1]) for _ in range(4)]
    for port in switch.ports:
        port.set_features(EVERYTHING, HEADER.size)
    async with trio.open_nursery() as nursery:
        for pair, end in enumerate(ends):
            nursery.start_soon(switch.ports[1].receive, pair, end)
        await wait_all_tasks_blocked()
        used = set()
        for number in range(32):
            for pair in range(4):
                sender.send(conversation(version, number), pair=pair, pieces=pieces)
            counts = [len(end.take()) for end in ends]
            assert sorted(counts) == [0, 0, 0, 4]
            used.add(counts.index(4))
        assert len(used) > 1
        for number in range(4):  # the receiver chooses by where it sends
            ends[0].send(conversation(version, 1000 + number, back=True), pair=number)
            for pair in range(4):
                sender.send(conversation(version, 1000 + number), pair=pair, pieces=pieces)
            assert [len(end.take()) for end in ends] == [4 * (at == number) for at in range(4)]
        nursery.cancel_scope.cancel()


SENDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 3)), max_size=40)


@settings(deadline=None)
@given(SENDS)
async def test_everybody_gets_what_is_for_it_once(sends: list[tuple[int, int, int]]) -> None:
    """5 is for all; 4 is an address that nobody has."""
    async with plugged_in(*Switch(4).ports) as ends:
        known: dict[int, int] = {}
        for number, (source, to, as_whom) in enumerate(sends):
            sent = frame(BROADCAST if to == 5 else mac(to), mac(as_whom), number.to_bytes(2, "big"))
            ends[source].send(sent)
            known[as_whom] = source
            wanted = {known[to]} if to in known else {0, 1, 2, 3}
            assert taken(ends) == [[sent] if at in wanted - {source} else [] for at in range(4)]
