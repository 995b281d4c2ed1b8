"""Pass-through of an input device: what a stand-in for evdev.InputDevice says and gets.

tests/guest/test_input_evdev.py does it with a real one.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, cast

import pytest
import trio
from evdev import AbsInfo as EvdevAbsInfo
from evdev import DeviceInfo, InputEvent
from trio.testing import wait_all_tasks_blocked

from protocol.virtio.input import EVENT, AbsInfo, DevIds, Event
from protocol.virtio.input_codes import KEYS, Abs, EventType, Led, Syn
from tests.vhost_user.devices.input.hands import SECONDS, next_report
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.evdev import BACKLOG, EvdevSource
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from evdev import InputDevice

    from vhost_user.frontend import DriverQueue

A, B, C = KEYS["A"], KEYS["B"], KEYS["C"]
REPORT = (EventType.SYN, Syn.REPORT, 0)
DROPPED = (EventType.SYN, Syn.DROPPED, 0)
REPEATED = 2


class StandIn:
    """What EvdevSource uses of an evdev.InputDevice, with a socket in place of the kernel."""

    path = "/dev/input/event7"
    name = "A keyboard"
    uniq = "4711"
    info = DeviceInfo(3, 0x46D, 0xC31C, 0x110)

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.fd = self._ours.fileno()
        self.down: set[int] = set()
        self.written: list[tuple[int, int, int]] = []
        self.refuses = False

    def capabilities(self, absinfo: bool) -> dict[int, list[int]]:
        assert not absinfo
        codes: dict[int, list[int]] = {
            EventType.SYN: [0],
            EventType.KEY: [A, B, C],
            EventType.ABS: [0, 0x2F, 0x39],
        }
        return {**codes, EventType.LED: [0], EventType.REP: [0, 1], 0x15: [0x50]}

    def absinfo(self, axis: int) -> EvdevAbsInfo:
        return EvdevAbsInfo(value=5, min=-1, max=1, fuzz=2, flat=3, resolution=4)

    def input_props(self) -> list[int]:
        return [1]

    def active_keys(self) -> list[int]:
        return sorted(self.down)

    def read(self) -> Iterator[InputEvent]:
        data = self._ours.recv(EVENT.size * 64)
        if not data:
            raise OSError(errno.ENODEV, "No such device")
        for start in range(0, len(data), EVENT.size):
            yield InputEvent(0, 0, *EVENT.unpack_from(data, start))

    def write(self, kind: int, code: int, value: int) -> None:
        if self.refuses:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.written.append((kind, code, value))

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    # The kernel's side

    def give(self, *events: tuple[int, int, int]) -> None:
        for kind, code, value in events:
            if kind == EventType.KEY:
                (self.down.add if value else self.down.discard)(code)
        self._theirs.sendall(b"".join(Event(*event).encode() for event in events))

    def unplug(self) -> None:
        self._theirs.shutdown(socket.SHUT_WR)


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
async def source(stand_in: StandIn) -> AsyncIterator[EvdevSource]:
    """A source that runs."""
    made = EvdevSource(cast("InputDevice[str]", stand_in))
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            yield made
            nursery.cancel_scope.cancel()
    made.close()


def key(code: int, value: int) -> tuple[int, int, int]:
    return (EventType.KEY, code, value)


def test_guest_is_told_what_the_device_is(stand_in: StandIn) -> None:
    description = EvdevSource(cast("InputDevice[str]", stand_in)).description
    stand_in.close()
    assert (description.name, description.serial) == ("A keyboard", "4711")
    assert description.ids == DevIds(3, 0x46D, 0xC31C, 0x110)
    assert description.properties == {1}
    assert description.events == {
        EventType.KEY: {A, B, C},
        EventType.ABS: {0, 0x2F, 0x39},
        EventType.LED: {0},  # not REP, as the host repeats keys, nor force feedback
    }
    assert description.axes == dict.fromkeys((0, 0x2F, 0x39), AbsInfo(-1, 1, 2, 3, 4))


async def test_reports_are_passed_on(stand_in: StandIn, source: EvdevSource) -> None:
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        request = queue.submit(EVENT.size)
        await source.reports.ready.wait()
        stand_in.give(key(A, 1), (EventType.ABS, 0, 3))
        echo = (EventType.LED, Led.NUML, 1)
        stand_in.give(REPORT, key(A, 2), REPORT, echo, REPORT, key(A, 0), echo, REPORT)
        assert Event.decode(await queue.wait(request)) == key(A, 1)
        assert await next_report(queue) == [(EventType.ABS, 0, 3)]
        assert await next_report(queue) == [key(A, 2)]
        assert await next_report(queue) == [key(A, 0)]


async def test_only_leds_and_sounds_are_passed_back(stand_in: StandIn, source: EvdevSource) -> None:
    led = Event(EventType.LED, Led.NUML, 1)
    async with driving(Input(source)) as front:
        queue = await front.start_queue(1)
        for event in (
            led,
            Event(EventType.KEY, A, 1),
            Event(EventType.REP, 0, 1),
            Event(EventType.SND, 1, 1),
        ):
            await queue.request(event.encode())
    assert stand_in.written == [led, (EventType.SND, 1, 1)]


async def test_led_that_cannot_be_switched_is_logged(
    stand_in: StandIn, source: EvdevSource, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.refuses = True
    source.take_status(Event(EventType.LED, Led.NUML, 1))
    assert "cannot write type 17, code 0, value 1 to /dev/input/event7: Bad file descriptor" in caplog.text


async def open_and_taken(queue: DriverQueue, count: int) -> list[list[Event]]:
    return [await next_report(queue) for _ in range(count)]


LIFTED = [(EventType.ABS, code, value) for slot in (-1, 0, 1) for code, value in ((0x2F, slot), (0x39, -1))]
AXES = [(EventType.ABS, Abs.X, 5)]


async def test_driver_is_told_how_things_are_after_the_kernel_dropped_events(
    stand_in: StandIn, source: EvdevSource
) -> None:
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        await wait_all_tasks_blocked()
        stand_in.give(key(A, 1), REPORT)
        assert await next_report(queue) == [key(A, 1)]
        stand_in.down = {B}
        stand_in.give((EventType.KEY, C, 0), DROPPED, (EventType.ABS, 0, 7), REPORT)
        assert await next_report(queue) == [*LIFTED, key(A, 0), key(B, 1), *AXES]
        stand_in.give(key(C, 1), REPORT)
        assert await next_report(queue) == [key(C, 1)]


async def test_key_that_the_driver_knows_of_by_its_repetition_only_is_pressed(
    stand_in: StandIn, source: EvdevSource
) -> None:
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        await wait_all_tasks_blocked()
        stand_in.give(DROPPED, REPORT, key(A, REPEATED), REPORT)
        assert await next_report(queue) == [key(A, REPEATED)]
        assert await next_report(queue) == [*LIFTED, key(A, 1), *AXES]


async def test_what_happens_while_no_driver_is_there_is_made_up_for(
    stand_in: StandIn, source: EvdevSource
) -> None:
    stand_in.give(key(A, 1), REPORT, key(B, 1), REPORT, key(B, 0), REPORT)
    await wait_all_tasks_blocked()
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        assert await next_report(queue) == [*LIFTED, key(A, 1), *AXES]
        await front.stop_queue(queue)
        stand_in.give(key(A, 0), REPORT)
        await wait_all_tasks_blocked()
        await front.resume_queue(queue)
        assert await next_report(queue) == [*LIFTED, key(A, 0), *AXES]


async def test_oldest_reports_are_dropped_for_a_guest_that_does_not_keep_up(
    stand_in: StandIn, source: EvdevSource, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        await wait_all_tasks_blocked()
        for number in range(BACKLOG + 10):
            stand_in.give(key(A if number % 2 else B, 1), key(A if number % 2 else B, 0), REPORT)
            await wait_all_tasks_blocked()
        stand_in.give(key(C, 1), REPORT)
        await wait_all_tasks_blocked()
        assert source.reports.dropped == 11
        taken = await open_and_taken(queue, BACKLOG)
        assert taken[-1] == [key(C, 1)]
        assert taken[0] == [key(A, 1), key(A, 0)]
        assert await next_report(queue) == [*LIFTED, *AXES]
    assert caplog.text.count("the guest does not take the events of /dev/input/event7") == 1


async def test_device_that_is_unplugged_leaves_nothing_pressed(
    stand_in: StandIn, source: EvdevSource, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(Input(source)) as front:
        queue = await front.start_queue()
        await wait_all_tasks_blocked()
        stand_in.give(key(A, 1), REPORT)
        assert await next_report(queue) == [key(A, 1)]
        stand_in.unplug()
        assert await next_report(queue) == [*LIFTED, key(A, 0)]
    assert (
        "/dev/input/event7 gives no more events: it was unplugged; start again when it is back" in caplog.text
    )


def test_closing_gives_the_device_back(stand_in: StandIn) -> None:
    Input(EvdevSource(cast("InputDevice[str]", stand_in))).close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stand_in.fd)
