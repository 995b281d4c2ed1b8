"""GPIO devices: features, configuration, requests (virtio 1.3, section 5.18).

Everything is little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from construct import Int16ul, Int32ul, Padding, Struct

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.bits import Bits
from protocol.virtio.config_space import ConfigSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST_QUEUE = 0
EVENT_QUEUE = 1
"""The queues (section 5.18.2); the second exists only with GpioFeature.IRQ."""

MAX_LINES = 0xFFFF


class GpioFeature(Bits):
    """Feature bits of GPIO devices (section 5.18.3)."""

    NONE = 0
    IRQ = 1 << 0


class GpioRequestType(IntEnum):
    """Types of requests (section 5.18.6)."""

    GET_LINE_NAMES = 1
    GET_DIRECTION = 2
    SET_DIRECTION = 3
    GET_VALUE = 4
    SET_VALUE = 5
    SET_IRQ_TYPE = 6


class GpioStatus(IntEnum):
    """The status, the first byte of a response."""

    OK = 0
    ERR = 1


class Direction(IntEnum):
    """The direction in which a driver uses a line; NONE: it does not use it."""

    NONE = 0
    OUT = 1
    IN = 2


class IrqType(IntEnum):
    """The trigger of a line's interrupt; NONE: it has no interrupt."""

    NONE = 0
    EDGE_RISING = 1
    EDGE_FALLING = 2
    EDGE_BOTH = 3
    LEVEL_HIGH = 4
    LEVEL_LOW = 8

    @property
    def is_level(self) -> bool:
        """True if the interrupt is triggered by a level, not by an edge."""
        return self in {IrqType.LEVEL_HIGH, IrqType.LEVEL_LOW}

    def fires_at(self, level: int) -> bool:
        """Return whether an edge to `level`, or for a level-triggered interrupt that level, triggers it."""
        at_high, at_low = IrqType.EDGE_RISING | IrqType.LEVEL_HIGH, IrqType.EDGE_FALLING | IrqType.LEVEL_LOW
        return bool(self & (at_high if level else at_low))


class IrqStatus(IntEnum):
    """The status of a used buffer of the event queue (section 5.18.7)."""

    INVALID = 0
    """No interrupt: that of the line was disabled."""
    VALID = 1


REQUEST = struct.Struct("<HHI")
"""type, line, value."""
RESPONSE = struct.Struct("<BB")
"""status, value; the response to GET_LINE_NAMES is the status and the names of `encode_names()`."""

IRQ_REQUEST = struct.Struct("<H")
"""The line of the interrupt that is unmasked."""
IRQ_RESPONSE = struct.Struct("<B")
"""An IrqStatus."""


@dataclass(frozen=True)
class GpioConfig(ConfigSpace):
    """The configuration space (section 5.18.4). `gpio_names_size` is 0 if no line has a name."""

    owner = "a GPIO device"
    layout = Struct("ngpio" / Int16ul, Padding(2), "gpio_names_size" / Int32ul)

    ngpio: int
    gpio_names_size: int = 0


CONFIG_SIZE: int = GpioConfig.layout.sizeof()


def encode_names(names: Sequence[str]) -> bytes:
    """Return the names of all lines in the form of a response to GET_LINE_NAMES; b"" if none has a name.

    Raises LocalProtocolError for a name that is not ASCII, has a zero byte, or occurs twice.
    """
    if not any(names):
        return b""
    given = [name for name in names if name]
    if len(set(given)) != len(given):
        raise LocalProtocolError("two lines have the same name")
    if not all(name.isascii() and "\0" not in name for name in given):
        raise LocalProtocolError("the name of a line is ASCII without a zero byte")
    return b"".join(name.encode("ascii") + b"\0" for name in names)


def decode_names(data: bytes, count: int) -> list[str]:
    """Return the names of `count` lines, "" for no name. Raises RemoteProtocolError for more or fewer."""
    *names, rest = data.split(b"\0")
    if len(names) != count or rest:
        raise RemoteProtocolError(f"{len(names)} names of {count} lines, and {len(rest)} bytes after them")
    try:
        return [name.decode("ascii") for name in names]
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"the name of a line is not ASCII: {error}") from error
