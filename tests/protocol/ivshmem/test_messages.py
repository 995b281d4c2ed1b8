"""The eight bytes of a message, and the refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError
from protocol.ivshmem import MAX_ID, MESSAGE_SIZE, PROTOCOL_VERSION, Refusal, decode, encode

SIGNED_64 = st.integers(-(2**63), 2**63 - 1)


@given(SIGNED_64)
def test_decode_reverses_encode(value: int) -> None:
    assert decode(encode(value)) == value


@given(st.binary(min_size=MESSAGE_SIZE, max_size=MESSAGE_SIZE))
def test_any_eight_bytes_are_a_value(data: bytes) -> None:
    assert encode(decode(data)) == data


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, bytes(8)),
        (1, b"\x01\0\0\0\0\0\0\0"),
        (0xABCD, b"\xcd\xab\0\0\0\0\0\0"),
        (-1, b"\xff" * 8),
        (-2, b"\xfe" + b"\xff" * 7),
    ],
)
def test_message_is_a_little_endian_signed_integer(value: int, data: bytes) -> None:
    assert encode(value) == data


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_too_large_a_value_is_our_error(value: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"{value} does not fit"):
        encode(value)


@given(st.binary(max_size=20).filter(lambda data: len(data) != MESSAGE_SIZE))
def test_any_other_length_is_our_error(data: bytes) -> None:
    with pytest.raises(LocalProtocolError, match=f"8 bytes, not {len(data)}"):
        decode(data)


@pytest.mark.parametrize("refusal", Refusal)
def test_refusal_is_a_version_that_no_client_knows(refusal: Refusal) -> None:
    """Nor an id, as which a client from before QEMU 2.5 would take it, nor the memory's message."""
    assert refusal != PROTOCOL_VERSION
    assert not 0 <= refusal <= MAX_ID
    assert refusal < -1


@pytest.mark.parametrize("refusal", Refusal)
def test_refusal_has_a_text_of_one_line(refusal: Refusal) -> None:
    assert len(refusal.text.splitlines()) == 1


def test_refusals_keep_their_numbers() -> None:
    """Clients of other versions read them."""
    assert {refusal.name: refusal.value for refusal in Refusal} == {
        "FULL": -2,
        "NOT_ALLOWED": -3,
        "NO_RESOURCES": -4,
        "IDS_EXHAUSTED": -5,
    }
