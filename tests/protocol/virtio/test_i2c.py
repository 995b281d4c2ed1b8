"""The layout of requests to I2C adapters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio.i2c import (
    KNOWN_FLAGS,
    REQUEST_HEADER,
    I2cFeature,
    RequestFlag,
    RequestStatus,
    decode_address,
    decode_ten_bit_address,
    encode_address,
)


def test_header() -> None:
    assert REQUEST_HEADER.unpack(bytes.fromhex("9000 5555 03000000")) == (0x90, 0x5555, 3)


def test_numbers_are_the_specifications() -> None:
    assert int(I2cFeature.ZERO_LENGTH_REQUEST) == 1
    assert (RequestFlag.FAIL_NEXT, RequestFlag.M_RD) == (1, 2)
    assert KNOWN_FLAGS == 3
    assert list(RequestStatus) == [0, 1]


@given(st.integers(0, 0x7F))
def test_seven_bits_are_a6_to_a0_at_the_bits_7_to_1(address: int) -> None:
    assert decode_address(encode_address(address)) == address
    assert encode_address(address) == int(f"{address:07b}0", 2)


@given(st.integers(0, 0x3FF))
def test_ten_bits_are_in_the_places_of_the_specifications_table(address: int) -> None:
    bits = f"{address:010b}"  # A9 to A0
    assert decode_ten_bit_address(int(f"{bits[2:]}11110{bits[:2]}0", 2)) == address


@given(st.integers(0, 0xFFFF))
def test_what_is_neither_form_is_no_address(addr: int) -> None:
    seven, ten = decode_address(addr), decode_ten_bit_address(addr)
    assert (seven is None) == (addr % 2 == 1 or addr > 0xFF)
    assert (ten is None) == (f"{addr & 0xFF:08b}"[:5] + f"{addr & 1}" != "111100")
