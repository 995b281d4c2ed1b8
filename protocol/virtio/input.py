"""Input devices: configuration space and events (virtio 1.3, section 5.8).

Everything is little-endian. Types, codes and values are those of Linux's evdev: see `input_codes`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from construct import Bytes, ConstructError, Int8ul, Int16ul, Int32sl, Padding, Struct

from protocol.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

EVENTQ = 0
"""The queue for events of the device."""
STATUSQ = 1
"""The queue for events of the driver, such as those that switch a LED."""

EVENT = struct.Struct("<HHi")
"""type, code, value; evdev's values are signed."""

U_SIZE = 128
"""Bytes of the configuration's field `u`."""
U_OFFSET = 8
"""Offset of `u`."""


class ConfigSelect(IntEnum):
    """Values of the field `select`, by which the driver chooses information (section 5.8.4)."""

    UNSET = 0x00
    ID_NAME = 0x01
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11
    """`subsel` is the event type."""
    ABS_INFO = 0x12
    """`subsel` is the axis."""


class Event(NamedTuple):
    """An event of the device or of the driver (section 5.8.6)."""

    type: int
    code: int
    value: int

    def encode(self) -> bytes:
        """Return its bytes. Raises LocalProtocolError for a field that does not fit."""
        try:
            return EVENT.pack(*self)
        except struct.error as error:
            raise LocalProtocolError(f"{self} does not fit into an event: {error}") from error

    @classmethod
    def decode(cls, data: bytes) -> Event:
        """Return the event at the beginning of `data`. Raises RemoteProtocolError for too few bytes."""
        if len(data) < EVENT.size:
            raise RemoteProtocolError(f"{len(data)} bytes are not an event, which has {EVENT.size}")
        return cls(*EVENT.unpack_from(data))


@dataclass(frozen=True)
class AbsInfo:
    """An absolute axis: its range, its noise (`fuzz`), its centre (`flat`), its units per millimetre."""

    minimum: int
    maximum: int
    fuzz: int = 0
    flat: int = 0
    resolution: int = 0

    def encode(self) -> bytes:
        """Return the bytes of `u.abs`. Raises LocalProtocolError for a number that does not fit."""
        return _build(_ABS_INFO, self)

    @classmethod
    def decode(cls, data: bytes) -> AbsInfo:
        """Return the axis in `u.abs`. Raises RemoteProtocolError for too few bytes."""
        return cls(*_parse(_ABS_INFO, data))


@dataclass(frozen=True)
class DevIds:
    """The identity of a device for drivers: bus, vendor, product and version, 16 bits each."""

    bustype: int = 0
    vendor: int = 0
    product: int = 0
    version: int = 0

    def encode(self) -> bytes:
        """Return the bytes of `u.ids`. Raises LocalProtocolError for a number that does not fit."""
        return _build(_DEV_IDS, self)

    @classmethod
    def decode(cls, data: bytes) -> DevIds:
        """Return the numbers in `u.ids`. Raises RemoteProtocolError for too few bytes."""
        return cls(*_parse(_DEV_IDS, data))


_ABS_INFO = Struct(
    "minimum" / Int32sl, "maximum" / Int32sl, "fuzz" / Int32sl, "flat" / Int32sl, "resolution" / Int32sl
)
_DEV_IDS = Struct("bustype" / Int16ul, "vendor" / Int16ul, "product" / Int16ul, "version" / Int16ul)
_CONFIG = Struct("select" / Int8ul, "subsel" / Int8ul, "size" / Int8ul, Padding(5), "u" / Bytes(U_SIZE))

CONFIG_SIZE: int = _CONFIG.sizeof()


def encode_config(select: int, subsel: int, data: bytes) -> bytes:
    """Return the configuration space that answers `select` and `subsel` with `data`, at most U_SIZE bytes.

    Without data there is no such information. Raises LocalProtocolError for more bytes.
    """
    fields = {"select": select, "subsel": subsel, "size": len(data), "u": data.ljust(U_SIZE, b"\0")}
    try:
        config: bytes = _CONFIG.build(fields)
    except ConstructError as error:
        raise LocalProtocolError(f"{len(data)} bytes do not fit into the configuration: {error}") from error
    return config


def encode_bits(numbers: Iterable[int]) -> bytes:
    """Return the shortest bitmap with these bits set.

    Raises LocalProtocolError for a number beyond the largest bitmap.
    """
    bits = 0
    for number in numbers:
        if not 0 <= number < 8 * U_SIZE:
            raise LocalProtocolError(f"bit {number} is not within {U_SIZE} bytes")
        bits |= 1 << number
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def decode_bits(data: bytes) -> frozenset[int]:
    """Return the numbers of the set bits of a bitmap."""
    bits = int.from_bytes(data, "little")
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def _build(layout: Struct, fields: AbsInfo | DevIds) -> bytes:
    try:
        data: bytes = layout.build(vars(fields))
    except ConstructError as error:
        raise LocalProtocolError(f"{fields} does not fit: {error}") from error
    return data


def _parse(layout: Struct, data: bytes) -> tuple[int, ...]:
    try:
        parsed = layout.parse(data)
    except ConstructError as error:
        raise RemoteProtocolError(f"{len(data)} bytes are too few: {error}") from error
    return tuple(parsed[field.name] for field in layout.subcons)
