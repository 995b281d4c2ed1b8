"""Scripts for input devices: the language, errors of one line, files, pipes and standard input."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.program.command_line import UserError
from protocol.virtio.input import Event
from protocol.virtio.input_codes import BTN_TOUCH, BUTTONS, KEYS, Abs, EventType, Led, Rel
from tests.vhost_user.devices.input.hands import SECONDS, taking
from tests.vhost_user.raw_frontend import until
from vhost_user.devices.input.player import MAX_LINE, InputDevices, Player, open_script
from vhost_user.devices.input.pointers import Mouse, Size, Tablet
from vhost_user.devices.input.script import USAGES, ScriptError
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.devices.input.touch import Touchscreen

if TYPE_CHECKING:
    from pathlib import Path

Reports = list[list[tuple[int, int, int]]]


@pytest.fixture
def devices() -> InputDevices:
    """One device of each kind, without a pace."""
    made = InputDevices([Keyboard(), Mouse(), Tablet(Size(100, 100)), Touchscreen(Size(100, 100), slots=1)])
    for device in made.devices.values():
        device.pace = 0
    return made


async def reports_of(devices: InputDevices, script: str) -> dict[str, Reports]:
    """Run a script; return the reports of each device that made some."""
    async with (
        taking(devices.devices["keyboard"]) as keyboard,
        taking(devices.devices["mouse"]) as mouse,
        taking(devices.devices["tablet"]) as tablet,
        taking(devices.devices["touchscreen"]) as touchscreen,
    ):
        await devices.run(script)
    found = {"keyboard": keyboard, "mouse": mouse, "tablet": tablet, "touchscreen": touchscreen}
    return {name: reports for name, reports in found.items() if reports}


def keys(*names: str) -> Reports:
    """Return a report for each key: pressed by its name, released by the name after a minus."""
    return [[(EventType.KEY, KEYS[name.lstrip("-")], int(name[0] != "-"))] for name in names]


def button(name: str, value: int) -> list[tuple[int, int, int]]:
    return [(EventType.KEY, BUTTONS[name], value)]


TOUCH_DOWN: list[tuple[int, int, int]] = [
    (EventType.KEY, BTN_TOUCH, 1),
    (EventType.ABS, Abs.X, 1),
    (EventType.ABS, Abs.Y, 2),
]
TOUCH_UP: list[tuple[int, int, int]] = [(EventType.KEY, BTN_TOUCH, 0)]

CASES: dict[str, tuple[str, Reports]] = {
    "type a b": ("keyboard", keys("A", "-A", "SPACE", "-SPACE", "B", "-B")),
    "key\tdown\tA\nkey up A": ("keyboard", keys("A", "-A")),
    "type  x ": ("keyboard", keys("SPACE", "-SPACE", "X", "-X", "SPACE", "-SPACE")),
    r"type 1\n\t\\": (
        "keyboard",
        keys("1", "-1", "ENTER", "-ENTER", "TAB", "-TAB", "BACKSLASH", "-BACKSLASH"),
    ),
    "type # no comment": ("keyboard", keys("LEFTSHIFT", "3", "-3", "-LEFTSHIFT", "SPACE", "-SPACE")),
    "press CTRL+C": ("keyboard", keys("LEFTCTRL", "C", "-C", "-LEFTCTRL")),
    "key down F1": ("keyboard", keys("F1")),
    "key down F1\nkey up f1": ("keyboard", keys("F1", "-F1")),
    "  press\tA": ("keyboard", []),
    "press   A": ("keyboard", keys("A", "-A")),
    "move 10 -5": ("mouse", [[(EventType.REL, Rel.X, 10), (EventType.REL, Rel.Y, -5)]]),
    "click": ("mouse", [button("LEFT", 1), button("LEFT", 0)]),
    "click right": ("mouse", [button("RIGHT", 1), button("RIGHT", 0)]),
    "button down left\nbutton up left": ("mouse", [button("LEFT", 1), button("LEFT", 0)]),
    "wheel -1": ("mouse", [[(EventType.REL, Rel.WHEEL, -1)]]),
    "wheel +2 sideways": ("mouse", [[(EventType.REL, Rel.HWHEEL, 2)]]),
    "on tablet wheel 1": ("tablet", [[(EventType.REL, Rel.WHEEL, 1)]]),
    "point 3 4": ("tablet", [[(EventType.ABS, Abs.X, 3), (EventType.ABS, Abs.Y, 4)]]),
    "tap 1 2": ("touchscreen", [TOUCH_DOWN, TOUCH_UP]),
    "touch 0 down 1 2\r\ntouch 0 up": ("touchscreen", [TOUCH_DOWN, TOUCH_UP]),
    "at 0s on touchscreen tap 1 2": ("touchscreen", [TOUCH_DOWN, TOUCH_UP]),
}


@pytest.mark.parametrize("script", [script for script in CASES if CASES[script][1]])
async def test_command(devices: InputDevices, script: str) -> None:
    device, expected = CASES[script]
    found = await reports_of(devices, script)
    if "no comment" in script:
        found[device] = found[device][: len(expected)]
    assert found == {device: expected}


async def test_comments_and_empty_lines_do_nothing(devices: InputDevices) -> None:
    assert await reports_of(devices, "# a comment\n\n   \n  # another") == {}


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("tipe hello", r"line 1: there is no command 'tipe'; there are type, press, .*, sleep, pace, at, on"),
        ("\n\nmove 1", "line 3: 'move 1' is incomplete or too much; write move DX DY"),
        ("move 1 2 3", "line 1: 'move 1 2 3' is incomplete or too much"),
        ("move 1 b", "line 1: 'b' is not a whole number"),
        ("type", "line 1: 'type' is incomplete or too much; write type TEXT"),
        ("type naïve", "line 1: a US keyboard has no key for 'ï'"),
        ("press NOKEY", "line 1: there is no key 'NOKEY'"),
        ("press A B", "write press KEY"),
        ("key hold A", r"'key hold A' is incomplete or too much; write key down\|up KEY"),
        ("click up", "line 1: there is no button 'up'"),
        ("button down", "write button down"),
        ("wheel 1 up", r"write wheel N \[sideways\]"),
        ("touch 0 down", "write touch SLOT down"),
        ("touch 0 up 1 2", "write touch SLOT down"),
        ("swipe 1 2 3", "write swipe X1 Y1 X2 Y2"),
        ("swipe 1 2 3 4 5", "line 1: '5' is not a time; write it as 20ms, 500us or 1.5s"),
        ("sleep 5", "line 1: '5' is not a time; write it as 20ms, 500us or 1.5s"),
        ("sleep", "line 1: '' is not a time"),
        ("pace fast", "line 1: 'fast' is not a time"),
        ("at 1s", "line 1: 'at 1s' says nothing to do; write at TIME COMMAND"),
        ("at noon click", "line 1: 'noon' is not a time"),
        ("wait led capslock", r"write wait led NAME on\|off"),
        ("wait led power on", "line 1: there is no LED 'power'"),
        ("on trackball move 1 1", "there is no device 'trackball' here; there are keyboard, mouse"),
        ("on keyboard move 1 1", "line 1: no device here can 'move'; there are keyboard"),
        ("on mouse", "line 1: 'on mouse' says nothing to do; write on DEVICE COMMAND"),
    ],
)
def test_error_names_line_cause_and_remedy(devices: InputDevices, script: str, error: str) -> None:
    with pytest.raises(ScriptError, match=error) as found:
        devices.parser.parse(script)
    assert "\n" not in str(found.value)


async def test_line_that_cannot_be_done_is_named(devices: InputDevices) -> None:
    with pytest.raises(ScriptError, match="line 2: 100 2 is outside of 100x100, which --size changes"):
        await devices.run("sleep 0s\ntap 100 2")


@given(st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    parser = InputDevices([Keyboard(), Mouse()]).parser
    with contextlib.suppress(ScriptError):
        parser.parse(text)


@given(st.sampled_from([usage.split()[0] for usage in USAGES]), st.text())
def test_whatever_comes_after_a_command_is_understood_or_refused(command: str, rest: str) -> None:
    parser = InputDevices([Keyboard(), Mouse(), Tablet(), Touchscreen()]).parser
    line = f"{command} {rest}".replace("\n", " ")
    with contextlib.suppress(ScriptError):
        assert parser.parse_line(1, line) is not None


def test_every_command_is_among_the_usages(devices: InputDevices) -> None:
    for usage in USAGES:
        with pytest.raises(ScriptError):
            devices.parser.parse(usage.replace("[", "").replace("TEXT", "ß"))


async def test_times_count_from_the_beginning_and_from_the_line_before(
    autojump_clock: MockClock, devices: InputDevices
) -> None:
    script = "at 2s key down A\nsleep 500ms\nkey up A\nat 1s key down B\npace 1s\npress C\npress D"
    times: list[float] = []
    async with taking(devices.devices["keyboard"], times):
        await devices.run(script)
    assert times == pytest.approx([2, 2.5, 2.5, 2.5, 3.5, 4.5, 5.5])


async def test_script_waits_for_a_led(devices: InputDevices) -> None:
    keyboard = devices.devices["keyboard"]
    async with taking(keyboard) as reports, trio.open_nursery() as nursery:
        nursery.start_soon(devices.run, "wait led capslock on\npress A\nwait led capslock off\npress B")
        await wait_all_tasks_blocked()
        assert reports == []
        keyboard.take_status(Event(EventType.LED, Led.CAPSL, 1))
        await wait_all_tasks_blocked()
        assert reports == keys("A", "-A")
        keyboard.take_status(Event(EventType.LED, Led.CAPSL, 0))
    assert reports == keys("A", "-A", "B", "-B")


# Where scripts come from


async def test_file_is_played_once_the_driver_is_ready(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"\xef\xbb\xbftype a\r\npress B\r\n")  # as Windows has texts
    keyboard = Keyboard()
    devices = InputDevices([keyboard])
    player = Player(open_script(str(tmp_path / "script"), devices.parser), devices)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(player.run)
            await wait_all_tasks_blocked()
            assert not len(keyboard.reports)
            async with taking(keyboard) as reports:
                await until(lambda: len(reports) == 4)
    assert reports == keys("A", "-A", "B", "-B")
    player.close()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"type a\nmove 1 1", r"^/.*/script, line 2: no device here can 'move'; there are keyboard$"),
        (b"type \xff", "is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_file_with_an_error_is_refused_before_anything_is_done(
    tmp_path: Path, content: bytes, error: str
) -> None:
    (tmp_path / "script").write_bytes(content)
    with pytest.raises(UserError, match=error):
        open_script(str(tmp_path / "script"), InputDevices([Keyboard()]).parser)


@pytest.mark.parametrize("name", ["missing", "."])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot read the script .*: .*; give another file"):
        open_script(str(tmp_path / name), InputDevices([Keyboard()]).parser)


async def until_there_are(count: int, reports: Reports) -> None:
    await until(lambda: len(reports) >= count)


async def test_lines_of_a_pipe_are_played_as_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    keyboard = Keyboard()
    devices = InputDevices([keyboard])
    player = Player(open_script(path, devices.parser), devices)
    async with taking(keyboard) as reports, trio.open_nursery() as nursery:
        nursery.start_soon(player.run)
        for part, count in (
            (b"type a\ntype b", 2),
            (b"\nnonsense\ntype \xff\nkey up A\ntype c\n", 6),
            (b"type d\n", 8),
        ):
            with open(path, "wb", buffering=0) as pipe:  # noqa: PTH123, ASYNC230 -- one writer after the other
                pipe.write(part)
            await until_there_are(count, reports)
        nursery.cancel_scope.cancel()
    player.close()
    assert [events[0][1] for events in reports[::2]] == [KEYS[name] for name in "ABCD"]
    assert "the script's line 3: there is no command 'nonsense'" in caplog.text
    assert "the script's line 4 is not UTF-8 text" in caplog.text
    assert "the script's line 5: key A is not down; press it first" in caplog.text


async def test_endless_line_ends_the_script(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    devices = InputDevices([Keyboard()])
    script = open_script(path, devices.parser)
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_much, path)
            assert [step async for step in script.steps()] == []
            nursery.cancel_scope.cancel()
    script.close()
    assert "is longer than 65536 bytes; the script ends here" in caplog.text


async def write_much(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    left = 2 * MAX_LINE
    try:
        while left:
            await trio.lowlevel.wait_writable(fd)
            left -= os.write(fd, b"x" * min(left, 4096))
    finally:
        os.close(fd)
