"""The script language of simulated input devices: what is done, one command a line.

docs/input.md describes it for people.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from protocol.program.units import parse_time
from vhost_user.devices.input.keymap import button_code, chord, key_code, keys_for, led_name
from vhost_user.devices.input.simulation import SimulatedInput

Devices = Mapping[str, SimulatedInput]

_BYTE_ORDER_MARK = "\ufeff"
"""With which editors on Windows begin a text."""
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}


class ScriptError(ValueError):
    """A line that cannot be understood, or done; one line that says which, why, and what to write."""


@dataclass(frozen=True)
class Step:
    """A line of a script: what to do, and when at the earliest, in seconds since the script began."""

    line: int
    action: Callable[[], Awaitable[None]]
    at: float = 0.0

    async def run(self, began: float) -> None:
        """Do it. `began` is by trio's clock. Raises ScriptError where the device refuses."""
        await trio.sleep_until(began + self.at)
        try:
            await self.action()
        except ValueError as error:
            raise ScriptError(f"line {self.line}: {error}") from None


@dataclass(frozen=True)
class _Command:
    """A command: how it is written, which call it becomes, and its arguments from the words after it."""

    usage: str
    call: str
    arguments: Callable[[str], dict[str, Any]] = field(repr=False)


class Parser:
    """Understands lines of scripts for these devices. A name that a line gives none for is the first's."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def parse(self, text: str) -> list[Step]:
        """Return the steps of a whole script. Raises ScriptError for the first line that is wrong."""
        steps = (self.parse_line(number, line) for number, line in enumerate(text.split("\n"), 1))
        return [step for step in steps if step is not None]

    def parse_line(self, number: int, line: str) -> Step | None:
        """Return the step of one line; None for an empty one or a comment. Raises ScriptError."""
        line = line.removeprefix(_BYTE_ORDER_MARK).removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            return None
        try:
            at, line = _at(line)
            return Step(number, self._action(line), at)
        except ValueError as error:
            raise ScriptError(f"line {number}: {error}") from None

    def _action(self, line: str) -> Callable[[], Awaitable[None]]:
        word, rest = _split(line)
        if word == "sleep":
            return partial(trio.sleep, parse_time(rest))
        if word == "pace":
            return partial(self._set_pace, parse_time(rest))
        devices = self._devices
        if word == "on":
            name, line = _split(rest)
            if name not in devices:
                raise ValueError(f"there is no device '{name}' here; {_among(devices)}")
            devices = {name: devices[name]}
            word, rest = _split(line)
            if not word:
                raise ValueError(f"'on {name}' says nothing to do; write on DEVICE COMMAND")
        command = _COMMANDS.get(word)
        if command is None:
            raise ValueError(f"there is no command '{word}'; there are {', '.join([*_COMMANDS, *_OTHERS])}")
        try:
            arguments = command.arguments(rest)
        except _UsageError:
            raise ValueError(f"'{line.rstrip()}' is incomplete or too much; write {command.usage}") from None
        call = arguments.pop("", command.call)
        return partial(_method(devices, call, word), **arguments)

    async def _set_pace(self, seconds: float) -> None:
        for device in self._devices.values():
            device.pace = seconds


class _UsageError(ValueError):
    """The words of a command are too many, too few or not those that it has."""


def _at(line: str) -> tuple[float, str]:
    """Return when a line is to be done, and what is."""
    word, rest = _split(line)
    if word != "at":
        return 0.0, line
    time, rest = _split(rest)
    if not rest:
        raise ValueError(f"'{line.rstrip()}' says nothing to do; write at TIME COMMAND")
    return parse_time(time), rest


def _split(text: str) -> tuple[str, str]:
    """Return the first word, and what is after it and one space or tab."""
    word, *rest = re.split(r"[ \t]", text.lstrip(), maxsplit=1)
    return word, "".join(rest)


def _method(devices: Devices, call: str, word: str) -> Callable[..., Awaitable[None]]:
    for device in devices.values():
        if (found := getattr(device, call, None)) is not None:
            return found  # type: ignore[no-any-return]
    raise ValueError(f"no device here can '{word}'; {_among(devices)}")


def _among(devices: Devices) -> str:
    return f"there are {', '.join(devices)}"


# The arguments of commands


def _words(text: str, least: int, most: int | None = None) -> list[str]:
    words = text.split()
    if not least <= len(words) <= (most or least):
        raise _UsageError
    return words


def _number(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,9}", text, re.ASCII):
        raise ValueError(f"'{text}' is not a whole number")
    return int(text)


def _numbers(names: str) -> Callable[[str], dict[str, Any]]:
    def arguments(text: str) -> dict[str, Any]:
        wanted = names.split()
        return dict(zip(wanted, map(_number, _words(text, len(wanted))), strict=True))

    return arguments


def _type(text: str) -> dict[str, Any]:
    if not text:
        raise _UsageError
    whole = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], text)
    for character in whole:
        keys_for(character)
    return {"text": whole}


def _press(text: str) -> dict[str, Any]:
    (keys,) = _words(text, 1)
    chord(keys)
    return {"keys": keys}


def _key(text: str) -> dict[str, Any]:
    state, key = _words(text, 2)
    key_code(key)
    return {"": _one_of(state, {"down": "key_down", "up": "key_up"}), "key": key}


def _click(text: str) -> dict[str, Any]:
    (button,) = _words(text, 0, 1) or ["left"]
    button_code(button)
    return {"button": button}


def _button(text: str) -> dict[str, Any]:
    state, button = _words(text, 2)
    button_code(button)
    return {"": _one_of(state, {"down": "button_down", "up": "button_up"}), "button": button}


def _wheel(text: str) -> dict[str, Any]:
    clicks, *way = _words(text, 1, 2)
    return {"clicks": _number(clicks), "sideways": bool(way and _one_of(way[0], {"sideways": "sideways"}))}


def _touch(text: str) -> dict[str, Any]:
    slot, state, *place = _words(text, 2, 4)
    call = _one_of(state, {"down": "touch_down", "move": "touch_move", "up": "touch_up"})
    if len(place) != (0 if state == "up" else 2):
        raise _UsageError
    return {"": call, "slot": _number(slot), **dict(zip(("x", "y"), map(_number, place), strict=False))}


def _swipe(text: str) -> dict[str, Any]:
    *places, last = _words(text, 4, 5)
    arguments: dict[str, Any] = {}
    if len(places) == 4:
        arguments["seconds"] = parse_time(last)
    else:
        places.append(last)
    return {**arguments, **dict(zip(("x1", "y1", "x2", "y2"), map(_number, places), strict=True))}


def _wait(text: str) -> dict[str, Any]:
    what, led, state = _words(text, 3)
    led_name(led)
    _one_of(what, {"led": "led"})
    return {"led": led, "lit": _one_of(state, {"on": "on", "off": "off"}) == "on"}


def _one_of(word: str, choices: Mapping[str, str]) -> str:
    if word not in choices:
        raise _UsageError
    return choices[word]


_COMMANDS = {
    "type": _Command("type TEXT", "type_text", _type),
    "press": _Command("press KEY[+KEY...]", "press", _press),
    "key": _Command("key down|up KEY", "", _key),
    "wait": _Command("wait led NAME on|off", "wait_led", _wait),
    "move": _Command("move DX DY", "move", _numbers("dx dy")),
    "point": _Command("point X Y", "point", _numbers("x y")),
    "click": _Command("click [BUTTON]", "click", _click),
    "button": _Command("button down|up BUTTON", "", _button),
    "wheel": _Command("wheel N [sideways]", "wheel", _wheel),
    "tap": _Command("tap X Y", "tap", _numbers("x y")),
    "swipe": _Command("swipe X1 Y1 X2 Y2 [TIME]", "swipe", _swipe),
    "touch": _Command("touch SLOT down|move X Y, or touch SLOT up", "", _touch),
}
_OTHERS = ("sleep", "pace", "at", "on")

USAGES = [*(command.usage for command in _COMMANDS.values()), "sleep TIME", "pace TIME"]
"""How each command is written, for people; before each, there may be `at TIME` and then `on DEVICE`."""
