"""Anything to input devices: what drivers write to the configuration and send back, and scripts of people.

The first byte says which of the three; the rest is what is written, sent, or the script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import ConfigFlag
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.input import CONFIG_SIZE, EVENT, U_SIZE, ConfigSelect, Event
from protocol.virtio.input_codes import EventType, Led
from tests.fuzz.harness import DefectError
from vhost_user.buffers import Readable
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.keymap import LEDS
from vhost_user.devices.input.player import InputDevices
from vhost_user.devices.input.pointers import Mouse, Tablet
from vhost_user.devices.input.script import ScriptError
from vhost_user.devices.input.simulation import Keyboard
from vhost_user.devices.input.touch import Touchscreen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.ring.chain import Chain

CONFIG, STATUS, SCRIPT = range(3)
"""What the first byte says."""

_parser = InputDevices([Keyboard(), Mouse(), Tablet(), Touchscreen()]).parser


class _Chain:
    """A status event's buffers, as the device gets them."""

    def __init__(self, data: bytes) -> None:
        half = len(data) // 2
        self.readable = Readable([memoryview(data[:half]), memoryview(data[half:])], len(data))


def one_input(data: bytes) -> None:
    """Fail unless it is understood, or refused as it should be."""
    kind = data[0] % 3 if data else CONFIG
    if kind == CONFIG:
        _configuration(data[1:])
    elif kind == STATUS:
        _status(data[1:])
    else:
        _script(data[1:].decode(errors="replace"))


def _configuration(data: bytes) -> None:
    """Write pieces anywhere, each with its offset and its length before it; look at all of it after each."""
    device = Input(Touchscreen())
    while len(data) >= 2:
        offset, size, data = data[0], data[1], data[2:]
        before = device.read_config(0, CONFIG_SIZE)
        piece, data = data[:size], data[size:]
        try:
            device.write_config(offset, piece, ConfigFlag.DRIVER)
        except RefusedError:
            if device.read_config(0, CONFIG_SIZE) != before:
                raise DefectError("what was refused has changed something") from None
        config = device.read_config(0, CONFIG_SIZE)
        if len(config) != CONFIG_SIZE or config[2] > U_SIZE or any(config[8 + config[2] :]):
            raise DefectError(f"the configuration is {config.hex()}")


def _status(data: bytes) -> None:
    """Send events of eight bytes, the last perhaps shorter."""
    keyboard = Keyboard(repeats=True)
    device = Input(keyboard)
    for start in range(0, len(data), EVENT.size):
        chain: Chain = _Chain(data[start : start + EVENT.size])  # type: ignore[assignment]
        device._take_status(chain)
    if not set(keyboard.leds()) <= {led.name for led in LEDS}:
        raise DefectError(f"these LEDs are on: {keyboard.leds()}")


def _script(text: str) -> None:
    try:
        _parser.parse(text)
    except ScriptError as error:
        if len(str(error).split("\n")) != 1:
            raise DefectError(f"not in one line: {str(error)!r}") from error


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield what drivers do, and a script with each command."""
    select = bytes([0, 1, ConfigSelect.EV_BITS, 1, 1, EventType.ABS])
    yield "select", bytes([CONFIG]) + select + bytes([0, 136, ConfigSelect.ABS_INFO, 0x35]) + bytes(134)
    events = (Event(EventType.LED, Led.CAPSL, 1), Event(EventType.REP, 0, 250), Event(EventType.SND, 1, 1))
    yield "status", bytes([STATUS]) + b"".join(event.encode() for event in events) + b"\x11\0\1"
    script = (
        b"type a\\n\npress CTRL+C\nkey down A\nwait led capslock on\nmove 1 -2\npoint 3 4\nclick right\n"
        b"button up left\nwheel 1 sideways\ntap 1 2\nswipe 1 2 3 4 200ms\ntouch 0 down 1 2\ntouch 0 up\n"
        b"at 1.5s on tablet wheel 1\nsleep 5ms\npace 0s\n# the end"
    )
    yield "script", bytes([SCRIPT]) + script
