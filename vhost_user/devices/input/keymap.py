"""Names of keys and buttons, and the keys that type a text on a US keyboard."""

from __future__ import annotations

from protocol.virtio.input_codes import BUTTONS, KEYS, Led

SHIFT = KEYS["LEFTSHIFT"]

LEDS = (Led.NUML, Led.CAPSL, Led.SCROLLL)
"""Those of a keyboard."""

_ALIASES = {
    **{
        "CTRL": "LEFTCTRL",
        "CONTROL": "LEFTCTRL",
        "SHIFT": "LEFTSHIFT",
        "ALT": "LEFTALT",
        "ALTGR": "RIGHTALT",
    },
    **{"META": "LEFTMETA", "SUPER": "LEFTMETA", "WIN": "LEFTMETA", "ESCAPE": "ESC", "RETURN": "ENTER"},
    **{"DEL": "DELETE", "INS": "INSERT", "PGUP": "PAGEUP", "PGDN": "PAGEDOWN", "BKSP": "BACKSPACE"},
    **{"PRINT": "SYSRQ", "PLUS": "KPPLUS"},
}

_PLAIN = {
    **{character: character.upper() for character in "abcdefghijklmnopqrstuvwxyz0123456789"},
    **{"\n": "ENTER", "\t": "TAB", "\b": "BACKSPACE", "\x1b": "ESC", " ": "SPACE"},
    **{"-": "MINUS", "=": "EQUAL", "[": "LEFTBRACE", "]": "RIGHTBRACE", "\\": "BACKSLASH", ";": "SEMICOLON"},
    **{"'": "APOSTROPHE", "`": "GRAVE", ",": "COMMA", ".": "DOT", "/": "SLASH"},
}
_SHIFTED = dict(
    zip('!@#$%^&*()_+{}|:"~<>?', "1234567890-=[]\\;'`,./", strict=True),
    **{character.upper(): character for character in "abcdefghijklmnopqrstuvwxyz"},
)


def key_code(name: str) -> int:
    """Return the code of a key: A, ENTER, CTRL, KEY_ENTER, or a character of an unshifted key, as `/`.

    Raises ValueError.
    """
    upper = name.upper().removeprefix("KEY_")
    upper = _ALIASES.get(upper, upper)
    code = KEYS.get(upper if upper in KEYS else _PLAIN.get(name, ""))
    if code is None:
        raise ValueError(
            f"there is no key '{name}'; names are Linux's without KEY_, such as A, ENTER, F1, KP5"
        )
    return code


def chord(text: str) -> list[int]:
    """Return the codes of keys that are pressed together, `CTRL+ALT+DELETE`. Raises ValueError."""
    names = text.split("+")
    if len(names) > 1 and not all(names):
        raise ValueError(f"'{text}' has a + without a key beside it; the key + is called PLUS")
    codes = [key_code(name) for name in names]
    if len(set(codes)) < len(codes):
        raise ValueError(f"'{text}' names a key twice")
    return codes


def button_code(name: str) -> int:
    """Return the code of a mouse button: left, RIGHT, BTN_MIDDLE. Raises ValueError."""
    code = BUTTONS.get(name.upper().removeprefix("BTN_"))
    if code is None:
        raise ValueError(f"there is no button '{name}'; there are {', '.join(BUTTONS).lower()}")
    return code


def led_name(name: str) -> str:
    """Return what a LED is called: CAPSL for capslock, LED_CAPSL and the like. Raises ValueError."""
    upper = name.upper().removeprefix("LED_").removesuffix("OCK")
    names = [led.name for led in LEDS]
    if upper not in names:
        raise ValueError(f"there is no LED '{name}'; there are {', '.join(names).lower()}")
    return upper


def keys_for(character: str) -> list[int]:
    """Return the codes of the keys that type a character: one key, or shift and a key.

    Raises ValueError for a character that a US keyboard has no key for.
    """
    if character in _SHIFTED:
        return [SHIFT, KEYS[_PLAIN[_SHIFTED[character]]]]
    if character not in _PLAIN:
        raise ValueError(f"a US keyboard has no key for {character!r} (U+{ord(character):04X}); leave it out")
    return [KEYS[_PLAIN[character]]]
