"""I2C adapters: features, requests, addresses (virtio 1.3, section 5.16).

Everything is little-endian. A request is a header, a buffer that is written to the chip or filled from
it (absent in a request of length zero), and a byte of status. There is no configuration space.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from protocol.virtio.bits import Bits

MAX_MESSAGE = 0xFFFF
"""Most bytes in a message, as in Linux's `struct i2c_msg`; the specification has no limit."""


class I2cFeature(Bits):
    """Feature bits of I2C adapters (section 5.16.3)."""

    NONE = 0
    ZERO_LENGTH_REQUEST = 1 << 0
    """It also stands for M_RD. A device must offer it, and reject drivers that do not turn it on."""


class RequestFlag(Bits):
    """The flags of a request (section 5.16.6.1); the other bits are reserved and zero."""

    NONE = 0
    FAIL_NEXT = 1 << 0
    """The next request belongs to the same group: it fails if this one does."""
    M_RD = 1 << 1
    """The buffer is filled from the chip."""


KNOWN_FLAGS = RequestFlag.FAIL_NEXT | RequestFlag.M_RD


class RequestStatus(IntEnum):
    """The status, the last byte of a request, which the device writes."""

    OK = 0
    ERR = 1


REQUEST_HEADER = struct.Struct("<HHI")
"""addr, padding, flags."""

_SEVEN_BIT_MASK = 0xFE


def encode_address(address: int) -> int:
    """Return the `addr` of a header for a 7-bit address (0 to 0x7F)."""
    return address << 1


def decode_address(addr: int) -> int | None:
    """Return the 7-bit address in the `addr` of a header, or None if it is not one."""
    return None if addr & ~_SEVEN_BIT_MASK else addr >> 1


def decode_ten_bit_address(addr: int) -> int | None:
    """Return the 10-bit address in the `addr` of a header, or None if it is not one.

    Its low byte is 1111 0xx0, where the two bits are A9 and A8; the high byte is A7 to A0.
    """
    return (addr & 0x06) << 7 | addr >> 8 if addr & 0xF9 == 0xF0 else None
