"""Simulated input devices: which reports each call makes."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, TypeVar

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.input_codes import BTN_TOUCH, KEYS, Abs, EventType, Rel
from tests.vhost_user.devices.input.hands import taking
from vhost_user.devices.input.keymap import button_code, chord, key_code, keys_for, led_name
from vhost_user.devices.input.pointers import Mouse, Size, Tablet
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.devices.input.touch import Touchscreen

if TYPE_CHECKING:
    from collections.abc import Awaitable

_Device = TypeVar("_Device", Keyboard, Mouse, Tablet, Touchscreen)
Reports = list[list[tuple[int, int, int]]]
SHIFT = KEYS["LEFTSHIFT"]


@pytest.fixture
def keyboard() -> Keyboard:
    return quick(Keyboard())


@pytest.fixture
def screen() -> Touchscreen:
    return quick(Touchscreen(Size(100, 100), slots=2))


def quick(device: _Device) -> _Device:
    device.pace = 0
    return device


def keys(*changes: int) -> Reports:
    """Return a report for each key: pressed if its code is positive, released if it is negative."""
    return [[(EventType.KEY, abs(code), int(code > 0))] for code in changes]


async def reports_of(device: Keyboard | Mouse | Tablet | Touchscreen, *calls: Awaitable[None]) -> Reports:
    async with taking(device) as reports:
        for made in calls:
            await made
    return reports


async def test_text_is_typed_with_shift_where_that_is_needed(keyboard: Keyboard) -> None:
    a, b, one, enter = (KEYS[name] for name in ("A", "B", "1", "ENTER"))
    assert await reports_of(keyboard, keyboard.type_text("aB!\n")) == keys(
        *(a, -a), *(SHIFT, b, -b, -SHIFT), *(SHIFT, one, -one, -SHIFT), *(enter, -enter)
    )


def test_a_us_keyboard_types_all_of_ascii() -> None:
    printable = string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", "")
    typed = {character: tuple(keys_for(character)) for character in printable}
    assert len(set(typed.values())) == len(printable)
    shown = "".join(character for character, codes in typed.items() if SHIFT not in codes)
    assert sorted(shown) == sorted(string.ascii_lowercase + string.digits + "`-=[]\\;',./ \n\t")


async def test_text_with_a_character_without_a_key_is_refused_as_a_whole(keyboard: Keyboard) -> None:
    async with taking(keyboard) as reports:
        with pytest.raises(ValueError, match=r"no key for 'ß' \(U\+00DF\); leave it out"):
            await keyboard.type_text("Straße")
    assert reports == []


async def test_keys_are_pressed_together(keyboard: Keyboard) -> None:
    ctrl, alt, delete = KEYS["LEFTCTRL"], KEYS["LEFTALT"], KEYS["DELETE"]
    assert await reports_of(keyboard, keyboard.press("ctrl+ALT+Del")) == keys(
        ctrl, alt, delete, -delete, -alt, -ctrl
    )


async def test_key_that_is_held_stays_down(keyboard: Keyboard) -> None:
    a, b = KEYS["A"], KEYS["B"]
    calls = (keyboard.key_down("shift"), keyboard.type_text("aB"), keyboard.key_up("shift"))
    assert await reports_of(keyboard, *calls) == keys(SHIFT, a, -a, b, -b, -SHIFT)


async def test_key_is_pressed_and_released_once(keyboard: Keyboard) -> None:
    async with taking(keyboard):
        with pytest.raises(ValueError, match="key A is not down; press it first"):
            await keyboard.key_up("A")
        await keyboard.key_down("A")
        with pytest.raises(ValueError, match="key a is down already; release it first"):
            await keyboard.key_down("a")


async def test_cancelled_call_leaves_nothing_pressed(keyboard: Keyboard) -> None:
    keyboard.pace = 1000
    ctrl, a = KEYS["LEFTCTRL"], KEYS["A"]
    async with taking(keyboard) as reports, trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.press, "CTRL+A")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert reports == keys(ctrl, -ctrl)
    keyboard.pace = 0
    assert await reports_of(keyboard, keyboard.press("CTRL+A")) == keys(ctrl, a, -a, -ctrl)


async def test_call_that_is_cancelled_before_there_is_a_driver_does_no_harm(keyboard: Keyboard) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.press, "A")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await reports_of(keyboard) == keys(KEYS["A"], -KEYS["A"])


async def test_calls_at_the_same_time_do_not_mix(keyboard: Keyboard) -> None:
    async with taking(keyboard) as reports, trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.type_text, "ab")
        nursery.start_soon(keyboard.type_text, "cd")
    typed = [KEYS[name] for name in "ABCD"]
    pressed = [events[0][1] for events in reports if events[0][2]]
    assert pressed in ([*typed[:2], *typed[2:]], [*typed[2:], *typed[:2]])


async def test_reports_keep_to_the_pace(autojump_clock: MockClock, keyboard: Keyboard) -> None:
    keyboard.pace = 0.5
    began = trio.current_time()
    await reports_of(keyboard, keyboard.type_text("abc"))
    assert trio.current_time() - began == pytest.approx(3)


async def test_led_can_be_waited_for(keyboard: Keyboard) -> None:
    seen = []

    async def wait(led: str, on: bool) -> None:
        await keyboard.wait_led(led, on)
        seen.append((led, on))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "capslock", True)
        await wait_all_tasks_blocked()
        keyboard._switch("NUML", on=True)
        await wait_all_tasks_blocked()
        assert seen == []
        keyboard._switch("CAPSL", on=True)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait, "NUML", True)
        nursery.start_soon(wait, "led_capsl", False)
        await wait_all_tasks_blocked()
        keyboard._switch("CAPSL", on=False)
    assert seen == [("capslock", True), ("NUML", True), ("led_capsl", False)]


async def test_led_that_only_flashes_is_noticed(keyboard: Keyboard) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keyboard.wait_led, "capslock")
        await wait_all_tasks_blocked()
        keyboard._switch("CAPSL", on=True)
        keyboard._switch("CAPSL", on=False)
    await keyboard.wait_led("capslock", lit=False)


def test_names() -> None:
    assert key_code("a") == key_code("KEY_A") == KEYS["A"]
    assert key_code("/") == KEYS["SLASH"]
    assert chord("CTRL+/") == [KEYS["LEFTCTRL"], KEYS["SLASH"]]
    assert button_code("BTN_RIGHT") == button_code("right") == 0x111
    assert [led_name(name) for name in ("capslock", "NUML", "LED_SCROLLL")] == ["CAPSL", "NUML", "SCROLLL"]


@pytest.mark.parametrize("name", ["", "AA", "KEY_", "?", "ä"])
def test_unknown_key_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no key '{name or ''}"):
        key_code(name)


def test_other_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'A\\+a' names a key twice"):
        chord("A+a")
    with pytest.raises(ValueError, match="no button 'up'; there are left, right, middle"):
        button_code("up")
    for name in ("CTRL++", "+", "A+"):
        with pytest.raises(
            ValueError, match=r"'\S+' has a \+ without a key beside it; the key \+ is called PLUS$"
        ):
            chord(name)
    for name in ("power", "kana"):  # a keyboard has three, and nobody would ever light another
        with pytest.raises(ValueError, match=f"no LED '{name}'; there are numl, capsl, scrolll$"):
            led_name(name)


async def test_mouse() -> None:
    mouse = quick(Mouse())
    calls = (mouse.move(3, -4), mouse.move(0, 5), mouse.move(0, 0), mouse.click(), mouse.click("right"))
    more = (mouse.button_down(), mouse.wheel(-2), mouse.wheel(1, True), mouse.wheel(0), mouse.button_up())
    assert await reports_of(mouse, *calls, *more) == [
        [(EventType.REL, Rel.X, 3), (EventType.REL, Rel.Y, -4)],
        [(EventType.REL, Rel.Y, 5)],
        *keys(0x110, -0x110, 0x111, -0x111, 0x110),
        [(EventType.REL, Rel.WHEEL, -2)],
        [(EventType.REL, Rel.HWHEEL, 1)],
        *keys(-0x110),
    ]
    with pytest.raises(ValueError, match="40000 is too much at once; give at most 32767"):
        await mouse.move(1, 40000)


async def test_tablet() -> None:
    tablet = quick(Tablet(Size(640, 480)))
    assert await reports_of(tablet, tablet.point(639, 0), tablet.click("middle")) == [
        [(EventType.ABS, Abs.X, 639), (EventType.ABS, Abs.Y, 0)],
        *keys(0x112, -0x112),
    ]
    for place in ((640, 0), (0, 480), (-1, 0)):
        with pytest.raises(ValueError, match="is outside of 640x480, which --size changes"):
            await tablet.point(*place)


def mt(code: Abs, value: int) -> tuple[int, int, int]:
    return (EventType.ABS, code, value)


async def test_tap_with_one_finger(screen: Touchscreen) -> None:
    place = [mt(Abs.MT_POSITION_X, 10), mt(Abs.MT_POSITION_Y, 20)]
    assert await reports_of(screen, screen.tap(10, 20)) == [
        [
            *(mt(Abs.MT_SLOT, 0), mt(Abs.MT_TRACKING_ID, 0), *place),
            *((EventType.KEY, BTN_TOUCH, 1), mt(Abs.X, 10), mt(Abs.Y, 20)),
        ],
        [mt(Abs.MT_SLOT, 0), mt(Abs.MT_TRACKING_ID, -1), (EventType.KEY, BTN_TOUCH, 0)],
    ]


async def test_pointer_goes_to_the_next_finger_when_the_first_is_lifted(screen: Touchscreen) -> None:
    calls = (screen.touch_down(1, 10, 20), screen.touch_down(0, 30, 40), screen.touch_move(0, 31, 41))
    reports = await reports_of(screen, *calls, screen.touch_up(1), screen.touch_up(0))
    assert reports[1:] == [
        [
            *(mt(Abs.MT_SLOT, 0), mt(Abs.MT_TRACKING_ID, 1)),
            *(mt(Abs.MT_POSITION_X, 30), mt(Abs.MT_POSITION_Y, 40)),
        ],
        [mt(Abs.MT_SLOT, 0), mt(Abs.MT_POSITION_X, 31), mt(Abs.MT_POSITION_Y, 41)],
        [mt(Abs.MT_SLOT, 1), mt(Abs.MT_TRACKING_ID, -1), mt(Abs.X, 31), mt(Abs.Y, 41)],
        [mt(Abs.MT_SLOT, 0), mt(Abs.MT_TRACKING_ID, -1), (EventType.KEY, BTN_TOUCH, 0)],
    ]


async def test_screen_for_one_finger_has_no_slots() -> None:
    screen = quick(Touchscreen(Size(100, 100), slots=1))
    assert not {Abs.MT_SLOT, Abs.MT_TRACKING_ID} & screen.description.axes.keys()
    calls = (screen.touch_down(0, 1, 2), screen.touch_move(0, 3, 4), screen.touch_up(0))
    assert await reports_of(screen, *calls) == [
        [(EventType.KEY, BTN_TOUCH, 1), mt(Abs.X, 1), mt(Abs.Y, 2)],
        [mt(Abs.X, 3), mt(Abs.Y, 4)],
        [(EventType.KEY, BTN_TOUCH, 0)],
    ]


async def test_swipe_takes_its_time_and_ends_where_it_should(autojump_clock: MockClock) -> None:
    screen = Touchscreen(Size(1000, 1000))
    began = trio.current_time()
    reports = await reports_of(screen, screen.swipe(10, 900, 910, 0, 2.0))
    assert trio.current_time() - began == pytest.approx(2, abs=0.1)
    path = [
        tuple(value for _, code, value in events if code in {Abs.MT_POSITION_X, Abs.MT_POSITION_Y})
        for events in reports[:-1]
    ]
    assert (path[0], path[10], path[-1]) == ((10, 900), (460, 450), (910, 0))
    assert len(path) == 21


async def test_cancelled_swipe_lifts_the_finger(screen: Touchscreen) -> None:
    screen.pace = 1000
    async with taking(screen) as reports, trio.open_nursery() as nursery:
        nursery.start_soon(screen.swipe, 0, 0, 99, 99)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [mt(Abs.MT_TRACKING_ID, -1) in events for events in reports] == [False, True]


async def test_touches_that_cannot_be_are_refused(screen: Touchscreen) -> None:
    async with taking(screen):
        with pytest.raises(ValueError, match="no slot 2: they are 0 to 1, which --slots changes"):
            await screen.touch_down(2, 0, 0)
        with pytest.raises(ValueError, match="slot 0 does not touch the screen; touch it first"):
            await screen.touch_up(0)
        await screen.touch_down(0, 0, 0)
        with pytest.raises(ValueError, match="slot 0 touches the screen already; lift it first"):
            await screen.touch_down(0, 0, 0)
        await screen.tap(0, 0)
        await screen.touch_down(1, 0, 0)
        with pytest.raises(ValueError, match="all slots touch the screen already; lift one first"):
            await screen.tap(0, 0)
        with pytest.raises(ValueError, match="outside of 100x100"):
            await screen.swipe(0, 0, 100, 0)
        with pytest.raises(ValueError, match="a swipe cannot take"):
            await screen.swipe(0, 0, 1, 1, -1.0)


class Fingers(RuleBasedStateMachine):
    """Whatever fingers do, a driver that follows the reports knows where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.screen = Touchscreen(Size(50, 50), slots=3)
        self.down: dict[int, tuple[int, int]] = {}
        self.seen: dict[int, tuple[int, int]] = {}
        self.pointer = (0, 0)
        self.is_touched = False

    slots = st.integers(0, 2)
    places = st.tuples(st.integers(0, 49), st.integers(0, 49))

    @rule(slot=slots, place=places)
    def touch(self, slot: int, place: tuple[int, int]) -> None:
        if slot not in self.down:
            self.down[slot] = place
            self.follow(self.screen._down_events(slot, *place))

    @precondition(lambda self: self.down)
    @rule(data=st.data(), place=places)
    def move(self, data: st.DataObject, place: tuple[int, int]) -> None:
        slot = data.draw(st.sampled_from(list(self.down)))
        self.down[slot] = place
        self.follow(self.screen._move_events(slot, *place))

    @precondition(lambda self: self.down)
    @rule(data=st.data())
    def lift(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(list(self.down)))
        del self.down[slot]
        self.follow(self.screen._up_events(slot))

    def follow(self, events: list[tuple[EventType, int, int]]) -> None:
        slot, (x, y) = -1, self.pointer
        for kind, code, value in events:
            if kind == EventType.KEY:
                self.is_touched = bool(value)
            elif code == Abs.MT_SLOT:
                slot = value
            elif code == Abs.MT_TRACKING_ID:
                self.seen.pop(slot, None)
                if value >= 0:
                    self.seen[slot] = (-1, -1)
            elif code == Abs.MT_POSITION_X:
                self.seen[slot] = (value, self.seen[slot][1])
            elif code == Abs.MT_POSITION_Y:
                self.seen[slot] = (self.seen[slot][0], value)
            elif code == Abs.X:
                x = value
            else:
                y = value
        self.pointer = (x, y)

    @invariant()
    def fingers_are_where_they_are(self) -> None:
        assert self.seen == self.down
        assert self.is_touched == bool(self.down)
        if self.down:
            assert self.pointer == next(iter(self.down.values()))


TestFingers = Fingers.TestCase
TestFingers.settings = settings(max_examples=30)


@given(st.text(st.sampled_from(string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", ""))))
def test_typed_text_is_what_a_us_layout_makes_of_the_keys(text: str) -> None:
    device = quick(Keyboard())
    typed = [event for events in trio.run(reports_of_text, device, text) for event in events]
    plain = {code: character for character in string.printable if (code := plain_code(character))}
    shown, shifted = [], False
    for _, code, value in typed:
        if code == SHIFT:
            shifted = bool(value)
        elif value:
            shown.append((plain[code], shifted))
    assert shown == [(lower(character), character != lower(character)) for character in text]


async def reports_of_text(device: Keyboard, text: str) -> Reports:
    return await reports_of(device, device.type_text(text))


def plain_code(character: str) -> int | None:
    """Return the code of the key that types a character without shift."""
    try:
        codes = keys_for(character)
    except ValueError:
        return None
    return codes[0] if len(codes) == 1 else None


def lower(character: str) -> str:
    """Return what a US keyboard's key for this character types without shift."""
    pairs = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
    return pairs.get(character, character.lower())
