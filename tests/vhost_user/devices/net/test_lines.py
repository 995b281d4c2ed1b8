"""Ports with bad lines, and captures of ports: around a network of ours, and around one that is read from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.fds import OwnedFd
from protocol.virtio.features import Feature
from protocol.virtio.net import GUEST_OFFLOADS, HOST_OFFLOADS, LEGACY_HEADER_SIZE, GsoType, NetFeature
from tests.rig.programs import pcapng
from tests.vhost_user.devices.net.ends import BROADCAST, frame, mac, plugged_in
from tests.vhost_user.devices.net.ports.test_offload import check_tcp, header, tcp_frame, udp_frame
from tests.vhost_user.devices.net.ports.test_pcap import read_all
from tests.vhost_user.devices.net.ports.test_tap import next_of_ours
from tests.vhost_user.raw_frontend import until
from vhost_user import CallError
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import NONE, Impairments
from vhost_user.devices.net.ports.pcap import Capture, CapturedPort
from vhost_user.devices.net.ports.port import MAX_FRAME, NetPort
from vhost_user.devices.net.ports.switch import Link, Switch
from vhost_user.devices.net.simulation import LineSimulation, SwitchPortSimulation
from vhost_user.devices.net.tap_options import open_tap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.rig.programs.netns import Namespace
    from vhost_user.devices.net.ports.port import Receiver


class Tap(NetPort):
    """Stands for a tap: what is sent is kept, and what is to be read waits there."""

    def __init__(self, *frames: bytes) -> None:
        self.sent: list[bytes] = []
        self.is_busy = False
        self.freed = trio.lowlevel.ParkingLot()
        self.is_closed = False
        self.arrive, self._arriving = trio.open_memory_channel[bytes](100)
        for each in frames:
            self.arrive.send_nowait(each)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        if not self.is_busy:
            self.sent.append(b"".join(buffers)[:length])
        return not self.is_busy

    async def until_sendable(self, pair: int) -> None:
        await self.freed.park()

    async def receive(self, pair: int, receiver: Receiver) -> None:
        async for each in self._arriving:
            while (buffers := receiver.window()) is None:
                await receiver.until_room()
            data = each
            for buffer in buffers:
                part = data[: len(buffer)]
                buffer[: len(part)] = part
                data = data[len(part) :]
            receiver.fill(len(each))
            receiver.flush()

    def close(self) -> None:
        self.is_closed = True


def impaired_link(*, seed: str = "", **settings: float) -> list[ImpairedPort]:
    """Return both ends of a link that is bad in each direction."""
    return [
        ImpairedPort(port, from_guest=Impairments(**settings), seed=f"{seed} {port.number}")
        for port in Link().ports
    ]


async def test_perfect_lines_are_not_in_the_way() -> None:
    ports = impaired_link()
    data, start = tcp_frame(4, bytes(60000))
    large = header(start, kind=GsoType.TCPV4, size=1448) + data
    async with plugged_in(*ports) as ends:
        for sent in (large, frame(BROADCAST, mac(0))):
            ends[0].send(sent)
            assert ends[1].take() == [sent]
    assert ports[0].from_guest.line.counts.arrived == ports[1].to_guest.line.counts.arrived == 2


async def test_delay(autojump_clock: MockClock) -> None:
    ports = impaired_link(delay=0.02)
    async with plugged_in(*ports) as ends:
        for number in range(3):
            ends[0].send(frame(BROADCAST, mac(0), bytes([number])))
            await trio.sleep(0.005)
        assert ends[1].take() == []
        await trio.sleep(0.006)
        assert ends[1].take() == [frame(BROADCAST, mac(0), b"\0")]
        await trio.sleep(0.01)
        assert ends[1].take() == [frame(BROADCAST, mac(0), bytes([number])) for number in (1, 2)]


async def test_both_lines_of_a_port(autojump_clock: MockClock) -> None:
    first, second = Link().ports
    port = ImpairedPort(first, from_guest=Impairments(delay=1), to_guest=Impairments(delay=3))
    async with plugged_in(port, second) as ends:
        ends[0].send(frame(BROADCAST, mac(0)))
        ends[1].send(frame(BROADCAST, mac(1)))
        await trio.sleep(1.1)
        assert (len(ends[0].take()), len(ends[1].take())) == (0, 1)
        await trio.sleep(2)
        assert (len(ends[0].take()), len(ends[1].take())) == (1, 0)


async def test_loss_is_counted_and_comes_again_with_the_same_seed() -> None:
    async def lost() -> list[int]:
        ports = impaired_link(loss=0.2, seed="7")
        async with plugged_in(*ports) as ends:
            for number in range(200):
                ends[0].send(frame(BROADCAST, mac(0), bytes([number])))
            await wait_all_tasks_blocked()
            got = [each[-1] for each in ends[1].take()]
        assert ports[0].from_guest.line.counts.lost == 200 - len(got)
        return got

    first = await lost()
    assert 120 < len(first) < 190
    assert first == await lost()


async def test_bad_line_carries_what_a_wire_does() -> None:
    ports = impaired_link(corrupt=0.0, duplicate=1.0)
    data, start = tcp_frame(6, bytes(20000))
    async with plugged_in(*ports) as ends:
        ends[0].send(header(start, kind=GsoType.TCPV6, size=1440) + data, pieces=7)
        await wait_all_tasks_blocked()
        got = ends[1].take()
        assert len(got) == 2 * 14
        for each in got:
            check_tcp(each, start, 14)
        ends[0].send(frame(BROADCAST, mac(0), header=header(34, kind=GsoType.UDP, size=1000)))
        await wait_all_tasks_blocked()
        assert ends[1].take() == []
    assert ports[0].dropped_from_guest == 1


def large_frame() -> tuple[bytes, int]:
    """Return TCP segments in one frame, and where TCP begins."""
    data, start = tcp_frame(4, bytes(60000))
    return header(start, kind=GsoType.TCPV4, size=1448) + data, start


@pytest.mark.parametrize("settings", [{"delay": 1, "jitter": 0.5}, {"rate": 1e9}])
async def test_large_segments_pass_whole_where_that_makes_no_difference(
    settings: dict[str, float], autojump_clock: MockClock
) -> None:
    ports = impaired_link(**settings)  # type: ignore[arg-type]
    sent, _ = large_frame()
    async with plugged_in(*ports) as ends:
        ends[0].send(sent, pieces=9)
        await trio.sleep(2)
        assert ends[1].take() == [sent]


async def test_large_segment_takes_as_long_as_its_packets(autojump_clock: MockClock) -> None:
    ports = impaired_link(rate=1e9)
    sent, _ = large_frame()
    async with plugged_in(*ports) as ends:
        seconds = (60000 + 42 * (12 + 14 + 20 + 20)) * 8 / 1e9
        ends[0].send(sent)
        await trio.sleep(seconds * 0.99)
        assert ends[1].take() == []
        await trio.sleep(seconds * 0.02)
        assert ends[1].take() == [sent]


@pytest.mark.parametrize("settings", [{"loss": 1e-9}, {"delay": 0.1, "reorder": 1e-9}, {"rate": 1e8}])
async def test_large_segments_are_cut_up_where_each_packet_fares_by_itself(
    settings: dict[str, float], autojump_clock: MockClock
) -> None:
    ports = impaired_link(**settings)  # type: ignore[arg-type]
    async with plugged_in(*ports) as ends:
        ends[0].send(large_frame()[0])
        await trio.sleep(1)
        assert len(ends[1].take()) == 42


async def test_large_segment_is_cut_up_for_a_guest_that_takes_none_by_now(
    autojump_clock: MockClock,
) -> None:
    first, second = Link().ports
    port = ImpairedPort(first, to_guest=Impairments(delay=1))
    sent, start = large_frame()
    async with plugged_in(port, second) as ends:
        ends[1].send(sent)
        port.set_offloads(NetFeature.GUEST_CSUM)
        await trio.sleep(2)
        got = ends[0].take()
        assert len(got) == 42
        assert sum(len(check_tcp(each, start, 14)) - 20 for each in got) == 60000


async def test_bad_line_offers_what_can_be_cut_up() -> None:
    """Of a tap, and UFO is not among that: frames of it would be lost."""
    tap = Tap()
    tap.offloads = HOST_OFFLOADS | GUEST_OFFLOADS
    offered = ImpairedPort(tap).offloads
    assert tap.offloads.without(offered) == NetFeature.HOST_UFO | NetFeature.GUEST_UFO


async def test_datagrams_in_one_frame_are_cut_up_on_a_bad_line() -> None:
    port = ImpairedPort(tap := Tap(), from_guest=Impairments(loss=1e-9))
    data, start = udp_frame(4, bytes(10_000))
    async with plugged_in(port) as (end,):
        end.send(header(start, kind=GsoType.UDP_L4, size=1000, offset=6) + data)
        await wait_all_tasks_blocked()
    assert [len(each) for each in tap.sent] == [12 + 14 + 20 + 8 + 1000] * 10
    assert port.dropped_from_guest == 0


async def test_line_to_a_guest_that_gives_no_room(autojump_clock: MockClock) -> None:
    first, second = Link().ports
    port = ImpairedPort(first, to_guest=Impairments(delay=1))
    sent = [frame(BROADCAST, mac(1), bytes([number])) for number in range(5)]
    async with plugged_in(port, second) as ends:
        ends[0].slots = 1
        for each in sent:
            ends[1].send(each)
        await trio.sleep(1.5)
        assert ends[0].take() == sent[:1]
        ends[0].give_room(10)
        await trio.sleep(0.1)
        assert ends[0].take() == sent[1:]


async def test_what_is_under_way_is_lost_with_the_link(autojump_clock: MockClock) -> None:
    ports = impaired_link(delay=1)
    async with plugged_in(*ports) as ends:
        ends[0].send(frame(BROADCAST, mac(0)))
        ports[0].set_link(False)
        assert not ports[1].link_up
        ports[0].set_link(True)
        await trio.sleep(2)
        assert ends[1].take() == []
    assert ports[0].from_guest.line.counts.cut_off == 1


async def test_link_that_changes_within_is_passed_on() -> None:
    ports = impaired_link()
    seen = []
    ports[1].link_changed = lambda: seen.append(ports[1].link_up)
    ports[0].set_link(False)
    assert seen == [False]


async def test_legacy_header_on_a_bad_line() -> None:
    ports = impaired_link(duplicate=1.0)
    sent = frame(BROADCAST, mac(0), b"old")[2:]
    async with plugged_in(*ports, header_size=LEGACY_HEADER_SIZE) as ends:
        ends[0].send(sent)
        await wait_all_tasks_blocked()
        assert ends[1].take() == [sent, sent]


async def test_both_ways_of_a_tap(autojump_clock: MockClock) -> None:
    arriving = [frame(BROADCAST, mac(9), bytes([number])) for number in range(3)]
    tap = Tap(*arriving)
    port = ImpairedPort(tap, from_guest=Impairments(delay=2), to_guest=Impairments(delay=1))
    async with plugged_in(port) as (end,):
        end.send(frame(BROADCAST, mac(0)))
        await trio.sleep(1.5)
        assert (end.take(), tap.sent) == (arriving, [])
        await trio.sleep(1)
        assert tap.sent == [frame(BROADCAST, mac(0))]
        tap.is_busy = True
        end.send(frame(BROADCAST, mac(0)))
        await trio.sleep(3)
        assert port.dropped_from_guest == 1
    port.close()
    assert tap.is_closed


async def test_line_of_a_tap_becomes_bad_and_good_again(autojump_clock: MockClock) -> None:
    tap = Tap()
    port = ImpairedPort(tap)
    async with plugged_in(port) as (end,):
        for settings, seconds in ((NONE, 0), (Impairments(delay=1), 1), (NONE, 0)):
            port.to_guest.change(settings)
            sent = frame(BROADCAST, mac(9), bytes([seconds]))
            tap.arrive.send_nowait(sent)
            await trio.sleep(0.5)
            assert end.take() == ([] if seconds else [sent])
            await trio.sleep(seconds)
            assert end.take() == ([sent] if seconds else [])


async def test_capture_has_each_frame_where_it_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    capture = Capture(str(path), ["port0", "port1"])
    ports = [
        CapturedPort(port, capture, number) for number, port in enumerate(impaired_link(loss=0.5, seed="3"))
    ]
    sent = [frame(BROADCAST, mac(0), bytes([number]) * 30) for number in range(20)]
    async with plugged_in(*ports) as ends:
        for each in sent:
            ends[0].send(each, pieces=3)
        await wait_all_tasks_blocked()
        got = ends[1].take()
    for port in ports:
        port.close()
    packets = pcapng.read(path.read_bytes())
    assert [each.data for each in packets if each.interface == "port0"] == [each[12:] for each in sent]
    assert [each.data for each in packets if each.interface == "port1"] == [each[12:] for each in got]
    assert 0 < len(got) < 20
    assert {(each.interface, each.direction) for each in packets} == {("port0", "in"), ("port1", "out")}
    assert [each.time for each in packets] == sorted(each.time for each in packets)


async def test_capture_that_somebody_reads_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    capture = Capture(str(path), ["port0", "port1"])
    ports = [CapturedPort(port, capture, number) for number, port in enumerate(impaired_link(delay=0.01))]
    with capture, OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        async with plugged_in(*ports) as ends:
            header = await until(lambda: read_all(reader.fileno()))
            ends[0].send(frame(BROADCAST, mac(0)))
            await until(lambda: ends[1].got)
        packets = pcapng.read(header + read_all(reader.fileno()))
    assert [(each.interface, each.direction) for each in packets] == [("port0", "in"), ("port1", "out")]


async def test_capture_of_a_tap_has_a_frame_once_that_had_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    tap = Tap(frame(BROADCAST, mac(9), bytes(MAX_FRAME - 26)))
    port = CapturedPort(tap, Capture(str(path), ["port0"]))
    async with plugged_in(port) as (end,):
        tap.is_busy = True
        view = memoryview(frame(BROADCAST, mac(0), b"later"))
        assert not port.send(0, [view], len(view))
        tap.is_busy = False
        assert port.send(0, [view], len(view))
        end.send(frame(BROADCAST, mac(0), b"next"))
        (large,) = end.take()
    port.close()
    assert [each.data for each in pcapng.read(path.read_bytes())] == [
        large[12:],
        frame(BROADCAST, mac(0), b"later")[12:],
        frame(BROADCAST, mac(0), b"next")[12:],
    ]


async def test_lines_are_changed_by_calls(autojump_clock: MockClock) -> None:
    ports = impaired_link()
    calls = LineSimulation(ports[0])
    async with plugged_in(*ports) as ends:
        calls.impair("from_guest", delay="20ms", loss=0.0)
        calls.impair(jitter="5ms", delay="10ms", rate="1Mbit")
        assert calls.impairments() == {
            name: {
                "loss": 0.0,
                "duplicate": 0.0,
                "corrupt": 0.0,
                "delay": 0.01,
                "jitter": 0.005,
                "reorder": 0.0,
                "rate": 1e6,
            }
            for name in ("from_guest", "to_guest")
        }
        ends[0].send(frame(BROADCAST, mac(0)))
        assert ends[1].take() == []
        assert calls.statistics()["from_guest"]["held"] == 1
        await trio.sleep(0.03)
        assert len(ends[1].take()) == 1
        calls.impair(loss="100%")
        ends[0].send(frame(BROADCAST, mac(0)))
        await trio.sleep(0.1)
        assert ends[1].take() == []
        calls.repair()
        ends[0].send(frame(BROADCAST, mac(0)))
        assert len(ends[1].take()) == 1
        counted = calls.statistics()["from_guest"]
        assert (counted["sent"], counted["arrived"], counted["lost"], counted["held"]) == (3, 2, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "much"}, "'much' is not a share; write it as 5%, or 0.05"),
        ({"loss": 5}, "'5' is not a share: one is from 0% to 100%, or below 1"),
        ({"loss": 1}, "'1' may be 1% or 100%; write which"),
        ({"delay": "20"}, "'20' is not a time; write it as 20ms, 500us or 1.5s"),
        ({"delay": 20}, "'20' is not a time; write it as 20ms, 500us or 1.5s"),
        ({"rate": -1}, "'-1' is not a rate; write it as 10Mbit"),
        ({"reorder": "1%"}, "reorder needs a delay: frames overtake others by not being delayed"),
        (
            {"delay": "1s", "jitter": "2s"},
            r"jitter \(2 s\) is more than the delay \(1 s\) that it is to vary",
        ),
    ],
)
def test_calls_that_cannot_be(arguments: dict[str, float | str], message: str) -> None:
    calls = LineSimulation(impaired_link()[0])
    before = calls.impairments()
    with pytest.raises(CallError, match=message):
        calls.impair(**arguments)  # type: ignore[arg-type]
    assert calls.impairments() == before


async def test_mac_table_is_told() -> None:
    switch = Switch(2)
    ports = [ImpairedPort(port) for port in switch.ports]
    async with plugged_in(*ports) as ends:
        ends[1].send(frame(BROADCAST, mac(1)))
        (entry,) = SwitchPortSimulation(ports[0], switch).mac_table()
        assert (entry["address"], entry["port"]) == ("52:54:00:00:00:01", 1)


async def test_a_real_tap_with_a_bad_line_and_a_capture(net: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "net.pcapng"
    net.add_tap("tap0")
    net.address("tap0", "192.0.2.1")
    tap = open_tap("tap0", netns=net.name)
    port = CapturedPort(ImpairedPort(tap, from_guest=Impairments(duplicate=1)), Capture(str(path), ["port0"]))
    sent, answer = frame(mac(9), mac(0), b"to the host"), frame(mac(0), mac(9), b"to the guest")
    with net.packets("tap0") as host:
        async with plugged_in(port, features=Feature(0)) as (end,):
            end.send(sent.ljust(72, b"\0"))
            for _ in range(2):
                assert await next_of_ours(host) == sent[12:].ljust(60, b"\0")
            host.send(answer[12:])
            got = await until(lambda: [each for each in end.got if each[24:26] == answer[24:26]])
        port.close()
    packets = [each for each in pcapng.read(path.read_bytes()) if each.data[12:14] == sent[24:26]]
    assert [(each.direction, each.data) for each in packets] == [
        ("in", sent[12:].ljust(60, b"\0")),
        ("out", got[0][12:]),
    ]
    assert got[0][12:].startswith(answer[12:])
