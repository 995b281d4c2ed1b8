"""Input devices towards their driver: configuration, events, status events, stops and resets."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from protocol.virtio.features import Feature
from protocol.virtio.input import (
    CONFIG_SIZE,
    EVENT,
    U_OFFSET,
    AbsInfo,
    ConfigSelect,
    DevIds,
    Event,
    decode_bits,
)
from protocol.virtio.input_codes import BTN_TOUCH, KEYS, Abs, EventType, Led, Property, Rep
from tests.vhost_user.devices.input.hands import next_report
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.keymap import key_code
from vhost_user.devices.input.pointers import Mouse, Size
from vhost_user.devices.input.reports import Description, Reports
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.devices.input.touch import Touchscreen
from vhost_user.frontend import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from vhost_user.frontend import Frontend

A, B = key_code("A"), key_code("B")


def key(code: int, value: int) -> Event:
    return Event(EventType.KEY, code, value)


def led(code: int, value: int) -> bytes:
    return Event(EventType.LED, code, value).encode()


async def query(front: Frontend, select: int, subsel: int = 0) -> bytes:
    """Ask as Linux's driver does: a byte at a time; return what there is of `u`."""
    await front.set_config(0, bytes([select]))
    await front.set_config(1, bytes([subsel]))
    (size,) = await front.get_config(1, 2)
    return await front.get_config(size, U_OFFSET) if size else b""


async def test_driver_learns_what_a_keyboard_is() -> None:
    async with driving(Input(Keyboard(repeats=True))) as front:
        assert await query(front, ConfigSelect.ID_NAME) == b"qemu-companion keyboard"
        assert DevIds.decode(await query(front, ConfigSelect.ID_DEVIDS)).bustype == 6
        keys = decode_bits(await query(front, ConfigSelect.EV_BITS, EventType.KEY))
        assert keys == frozenset(KEYS.values())
        assert decode_bits(await query(front, ConfigSelect.EV_BITS, EventType.LED)) == {0, 1, 2}
        assert decode_bits(await query(front, ConfigSelect.EV_BITS, EventType.REP)) == set(Rep)
        for kind in (EventType.REL, EventType.ABS, EventType.SW):
            assert await query(front, ConfigSelect.EV_BITS, kind) == b""


async def test_driver_learns_what_a_touch_screen_is() -> None:
    async with driving(Input(Touchscreen(Size(800, 480), slots=4))) as front:
        assert decode_bits(await query(front, ConfigSelect.PROP_BITS)) == {Property.DIRECT}
        assert decode_bits(await query(front, ConfigSelect.EV_BITS, EventType.KEY)) == {BTN_TOUCH}
        axes = decode_bits(await query(front, ConfigSelect.EV_BITS, EventType.ABS))
        assert axes == set(Abs)
        found = {axis: AbsInfo.decode(await query(front, ConfigSelect.ABS_INFO, axis)) for axis in axes}
        assert found == {
            Abs.X: AbsInfo(0, 799),
            Abs.Y: AbsInfo(0, 479),
            Abs.MT_SLOT: AbsInfo(0, 3),
            Abs.MT_POSITION_X: AbsInfo(0, 799),
            Abs.MT_POSITION_Y: AbsInfo(0, 479),
            Abs.MT_TRACKING_ID: AbsInfo(0, 65535),
        }


async def test_keys_repeat_only_where_that_is_wanted() -> None:
    async with driving(Input(Keyboard())) as front:
        assert await query(front, ConfigSelect.EV_BITS, EventType.REP) == b""


@pytest.mark.parametrize(
    ("select", "subsel"),
    [
        (ConfigSelect.UNSET, 0),
        (ConfigSelect.ID_NAME, 1),
        (ConfigSelect.ID_SERIAL, 0),  # it has none
        (ConfigSelect.ID_DEVIDS, 255),
        (ConfigSelect.PROP_BITS, 0),
        (ConfigSelect.EV_BITS, 255),
        (ConfigSelect.ABS_INFO, 0),
        (0x13, 0),
        (255, 255),
    ],
)
async def test_size_is_0_where_there_is_no_such_information(select: int, subsel: int) -> None:
    async with driving(Input(Keyboard())) as front:
        assert await query(front, ConfigSelect.ID_NAME)
        await front.set_config(0, bytes([select, subsel]))
        assert await front.get_config(CONFIG_SIZE) == bytes([select, subsel]) + bytes(CONFIG_SIZE - 2)


async def test_qemu_writes_the_whole_space_for_each_byte() -> None:
    async with driving(Input(Keyboard())) as front:
        await front.set_config(0, bytes([ConfigSelect.ID_NAME, 0]) + b"\xff" * (CONFIG_SIZE - 2))
        data = await front.get_config(CONFIG_SIZE)
        assert data == b"\x01\x00\x17" + bytes(5) + b"qemu-companion keyboard".ljust(128, b"\0")


async def test_nothing_but_the_selection_can_be_written() -> None:
    async with driving(Input(Keyboard())) as front:
        await front.set_config(0, bytes([ConfigSelect.ID_NAME, 0]))
        before = await front.get_config(CONFIG_SIZE)
        for offset in (2, 3, 8, 135):
            with pytest.raises(BackendError):
                await front.set_config(offset, b"\xff")
        assert await front.get_config(CONFIG_SIZE) == before


@settings(max_examples=200)
@given(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=20))
def test_space_can_be_read_and_written_anywhere(offset: int, size: int, data: bytes) -> None:
    device = Input(Touchscreen())
    whole = device.read_config(0, CONFIG_SIZE)
    assert device.read_config(offset, size) == whole[offset : offset + size]
    if offset < 2 and data:
        device.write_config(offset, data, 0)  # type: ignore[arg-type]  # flags are not looked at
        selected = (whole[:offset] + data)[:2].ljust(2, b"\0")
        assert device.read_config(0, 2) == selected


async def test_events_reach_the_driver_in_their_order() -> None:
    keyboard = Keyboard()
    async with driving(Input(keyboard)) as front, trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.press, "A+B")
        queue = await front.start_queue()
        reports = [await next_report(queue) for _ in range(4)]
        assert reports == [[key(A, 1)], [key(B, 1)], [key(B, 0)], [key(A, 0)]]


@pytest.mark.parametrize("features", [Feature.NONE, Feature.RING_PACKED])
async def test_report_of_many_events_goes_through_few_buffers(features: Feature) -> None:
    """QEMU 10 gives a queue of four entries."""
    screen = Touchscreen()
    async with driving(Input(screen), plus=features) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue(size=4)
        nursery.start_soon(screen.touch_down, 3, 100, 200)
        report = await next_report(queue)
        assert [event[1:] for event in report] == [
            (Abs.MT_SLOT, 3),
            (Abs.MT_TRACKING_ID, 0),
            (Abs.MT_POSITION_X, 100),
            (Abs.MT_POSITION_Y, 200),
            (BTN_TOUCH, 1),
            (Abs.X, 100),
            (Abs.Y, 200),
        ]


async def test_call_returns_when_the_driver_has_all_events() -> None:
    keyboard = Keyboard()
    keyboard.pace = 0
    returned = trio.Event()

    async def press() -> None:
        await keyboard.key_down("A")
        returned.set()

    async with driving(Input(keyboard)) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue()
        nursery.start_soon(press)
        assert Event.decode(await queue.request(EVENT.size)) == key(A, 1)
        await wait_all_tasks_blocked()
        assert not returned.is_set()
        await queue.request(EVENT.size)
        await returned.wait()


async def test_buffer_that_is_too_short_comes_back_empty_and_the_event_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keyboard = Keyboard()
    async with driving(Input(keyboard)) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue()
        assert await queue.request(7) == b""
        assert await queue.request(b"readable only") == b""
        nursery.start_soon(keyboard.key_down, "A")
        assert await queue.request(3) == b""
        assert await queue.request(3, 5) == key(A, 1).encode()
        assert await queue.request(b"aside", 100) == bytes(8)
    assert caplog.text.count("it is ignored, and so are others like it") == 1


async def test_leds_come_back() -> None:
    keyboard = Keyboard()
    async with driving(Input(keyboard)) as front:
        queue = await front.start_queue(1)
        with keyboard.events() as events:
            await queue.request(led(Led.CAPSL, 1))
            assert keyboard.leds() == ["CAPSL"]
            await queue.request(led(Led.NUML, 1))
            await queue.request(led(Led.CAPSL, 0))
            assert keyboard.leds() == ["NUML"]
            await queue.request(Event(EventType.REP, Rep.DELAY, 500).encode())
            await queue.request(Event(EventType.SND, 1, 1).encode())
            await queue.request(led(15, 1))
            await queue.request(led(Led.KANA, 1))  # which it has not
            assert keyboard.leds() == ["NUML"]
            found = [(event.name, event.data) for event in [await anext(events) for _ in range(7)]]
    assert found == [
        ("led", {"led": "CAPSL", "on": True}),
        ("led", {"led": "NUML", "on": True}),
        ("led", {"led": "CAPSL", "on": False}),
        ("repeat", {"delay": 500}),
        ("status", {"type": 18, "code": 1, "value": 1}),
        ("status", {"type": 17, "code": 15, "value": 1}),
        ("status", {"type": 17, "code": 4, "value": 1}),
    ]


async def test_status_buffers_of_any_kind_come_back(caplog: pytest.LogCaptureFixture) -> None:
    keyboard = Keyboard()
    async with driving(Input(keyboard)) as front:
        queue = await front.start_queue(1)
        assert await queue.request(led(Led.CAPSL, 1)[:7]) == b""
        assert await queue.request(8) == b""  # for the device to write to
        assert keyboard.leds() == []
        assert await queue.request(led(Led.CAPSL, 1)[:3], led(Led.CAPSL, 1)[3:]) == b""
        assert await queue.request(led(Led.NUML, 1) + b"and more", 8) == b""
        assert keyboard.leds() == ["CAPSL", "NUML"]
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
    assert "7 bytes are not an event" in caplog.text


async def test_waiting_buffers_are_the_drivers_again_when_the_queue_stops() -> None:
    keyboard = Keyboard()
    device = Input(keyboard)
    device.drain_seconds = 60
    async with driving(device) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue()
        request = queue.submit(EVENT.size)
        await wait_all_tasks_blocked()
        assert await front.stop_queue(queue) == 0
        await front.resume_queue(queue)
        nursery.start_soon(keyboard.key_down, "A")
        assert Event.decode(await queue.wait(request)) == key(A, 1)
        await queue.request(EVENT.size)


async def test_report_that_has_begun_is_finished_after_a_pause() -> None:
    mouse = Mouse()
    async with driving(Input(mouse)) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue()
        nursery.start_soon(mouse.move, 3, -4)
        assert Event.decode(await queue.request(EVENT.size)) == (EventType.REL, 0, 3)
        await front.stop_queue(queue)
        await front.resume_queue(queue)
        assert await next_report(queue) == [(EventType.REL, 1, -4)]


@pytest.mark.parametrize("way", ["reset", "select"])
async def test_new_driver_gets_no_end_of_a_report_whose_beginning_it_has_not(way: str) -> None:
    mouse = Mouse()
    async with driving(Input(mouse)) as front, trio.open_nursery() as nursery:
        queue = await front.start_queue()
        nursery.start_soon(mouse.move, 3, -4)
        assert Event.decode(await queue.request(EVENT.size)) == (EventType.REL, 0, 3)
        if way == "reset":
            await front.reset()
            queue = await front.start_queue()
        else:
            await front.set_config(0, bytes([ConfigSelect.ID_NAME]))
        nursery.start_soon(mouse.click)
        assert await next_report(queue) == [key(0x110, 1)]
        await next_report(queue)


async def test_oldest_reports_are_dropped_whole_where_there_is_a_limit() -> None:
    reports = Reports(limit=2)
    for number in range(5):
        reports.post([key(A, number), key(B, number)])
        if number == 0:
            assert await reports.event() == key(A, 0)
            reports.taken()
    assert reports.dropped == 2
    taken = []
    while len(reports):
        taken.append(await reports.event())
        reports.taken()
    assert [event.value for event in taken] == [0, 0, 3, 3, 0, 4, 4, 0]


async def test_dropped_report_holds_nobody_up() -> None:
    reports = Reports(limit=1)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reports.send, [key(A, 1)])
            await wait_all_tasks_blocked()
            reports.post([key(B, 1)])


def test_name_is_cut_where_the_space_ends() -> None:
    description = Description("ä" * 100, serial="4711")
    assert description.answer(ConfigSelect.ID_NAME, 0) == ("ä" * 64).encode()
    assert description.answer(ConfigSelect.ID_SERIAL, 0) == b"4711"
