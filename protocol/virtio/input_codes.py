"""Types and codes of input events: those of Linux's evdev that ordinary devices have.

virtio 1.3, section 5.8 refers to linux/input-event-codes.h for them; names and numbers are the same here.
The list has the codes of simulated devices; events passed through from the host need no names.
"""

from __future__ import annotations

from enum import IntEnum


class EventType(IntEnum):
    """Types of events."""

    SYN = 0x00
    KEY = 0x01
    REL = 0x02
    ABS = 0x03
    MSC = 0x04
    SW = 0x05
    LED = 0x11
    SND = 0x12
    REP = 0x14


class Syn(IntEnum):
    """Codes of SYN."""

    REPORT = 0
    """Ends a group of simultaneous events."""
    DROPPED = 3
    """Events were lost: events up to the next REPORT must be ignored."""


class Rel(IntEnum):
    """Codes of REL: movements."""

    X = 0x00
    Y = 0x01
    HWHEEL = 0x06
    WHEEL = 0x08


class Abs(IntEnum):
    """Codes of ABS: positions."""

    X = 0x00
    Y = 0x01
    MT_SLOT = 0x2F
    MT_POSITION_X = 0x35
    MT_POSITION_Y = 0x36
    MT_TRACKING_ID = 0x39


class Led(IntEnum):
    """Codes of LED."""

    NUML = 0x00
    CAPSL = 0x01
    SCROLLL = 0x02
    COMPOSE = 0x03
    KANA = 0x04


class Rep(IntEnum):
    """Codes of REP: the times of key repeat, in milliseconds."""

    DELAY = 0x00
    PERIOD = 0x01


class Property(IntEnum):
    """Properties of devices."""

    POINTER = 0x00
    """It moves a pointer on another screen."""
    DIRECT = 0x01
    """It is touched directly, as a touch screen is."""


BUS_VIRTUAL = 0x06

BTN_TOUCH = 0x14A

BUTTONS = {
    "LEFT": 0x110,
    "RIGHT": 0x111,
    "MIDDLE": 0x112,
    "SIDE": 0x113,
    "EXTRA": 0x114,
    "FORWARD": 0x115,
    "BACK": 0x116,
}
"""Codes of the buttons of a mouse, by name without BTN_."""


def _numbered(first: int, names: str) -> dict[str, int]:
    return {name: first + place for place, name in enumerate(names.split())}


KEYS = {
    **_numbered(1, "ESC 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE TAB"),
    **_numbered(16, "Q W E R T Y U I O P LEFTBRACE RIGHTBRACE ENTER LEFTCTRL"),
    **_numbered(30, "A S D F G H J K L SEMICOLON APOSTROPHE GRAVE LEFTSHIFT BACKSLASH"),
    **_numbered(44, "Z X C V B N M COMMA DOT SLASH RIGHTSHIFT KPASTERISK LEFTALT SPACE CAPSLOCK"),
    **_numbered(59, "F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 NUMLOCK SCROLLLOCK"),
    **_numbered(71, "KP7 KP8 KP9 KPMINUS KP4 KP5 KP6 KPPLUS KP1 KP2 KP3 KP0 KPDOT"),
    **_numbered(86, "102ND F11 F12"),
    **_numbered(96, "KPENTER RIGHTCTRL KPSLASH SYSRQ RIGHTALT LINEFEED"),
    **_numbered(102, "HOME UP PAGEUP LEFT RIGHT END DOWN PAGEDOWN INSERT DELETE MACRO"),
    **_numbered(113, "MUTE VOLUMEDOWN VOLUMEUP POWER KPEQUAL KPPLUSMINUS PAUSE"),
    **_numbered(121, "KPCOMMA HANGEUL HANJA YEN LEFTMETA RIGHTMETA COMPOSE STOP"),
    **{"MENU": 139, "SLEEP": 142, "WAKEUP": 143, "BACK": 158, "FORWARD": 159, "HOMEPAGE": 172},
    **_numbered(163, "NEXTSONG PLAYPAUSE PREVIOUSSONG STOPCD"),
    **_numbered(183, "F13 F14 F15 F16 F17 F18 F19 F20 F21 F22 F23 F24"),
    **{"BRIGHTNESSDOWN": 224, "BRIGHTNESSUP": 225},
}
"""Codes of the keys of a keyboard, by name without KEY_."""
