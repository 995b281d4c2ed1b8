"""Layouts of input devices, and event names against Linux's header."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio import input_codes
from protocol.virtio.input import (
    CONFIG_SIZE,
    EVENT,
    AbsInfo,
    ConfigSelect,
    DevIds,
    Event,
    decode_bits,
    encode_bits,
    encode_config,
)
from protocol.virtio.input_codes import BUTTONS, KEYS

HEADER = Path("/usr/include/linux/input-event-codes.h")

int32 = st.integers(-(1 << 31), (1 << 31) - 1)
uint16 = st.integers(0, (1 << 16) - 1)


def test_event_is_where_the_specification_has_it() -> None:
    assert Event(0x0102, 0x0304, 0x05060708).encode() == bytes.fromhex("0201 0403 08070605")
    assert EVENT.size == 8


def test_configuration_is_where_the_specification_has_it() -> None:
    config = encode_config(ConfigSelect.EV_BITS, 0x11, b"\x1f\x02")
    assert config == b"\x11\x11\x02" + bytes(5) + b"\x1f\x02" + bytes(126)
    assert len(config) == CONFIG_SIZE == 136


def test_axis_and_ids_are_where_the_specification_has_them() -> None:
    assert AbsInfo(-1, 2, 3, 4, 5).encode().hex(" ", 4) == "ffffffff 02000000 03000000 04000000 05000000"
    assert DevIds(1, 2, 3, 0x0405).encode() == bytes.fromhex("0100 0200 0300 0504")


@given(uint16, uint16, int32)
def test_events_come_back_as_they_were(kind: int, code: int, value: int) -> None:
    event = Event(kind, code, value)
    assert Event.decode(event.encode()) == event


@given(st.tuples(int32, int32, int32, int32, int32), st.tuples(uint16, uint16, uint16, uint16))
def test_descriptions_come_back_as_they_were(
    axis: tuple[int, int, int, int, int], ids: tuple[int, int, int, int]
) -> None:
    assert AbsInfo.decode(AbsInfo(*axis).encode()) == AbsInfo(*axis)
    assert DevIds.decode(DevIds(*ids).encode()) == DevIds(*ids)


@given(st.frozensets(st.integers(0, 8 * 128 - 1)))
def test_bitmaps_come_back_as_they_were(numbers: frozenset[int]) -> None:
    data = encode_bits(numbers)
    assert decode_bits(data) == numbers
    assert not data or data[-1]


def test_bits_are_counted_from_the_first_byte_on() -> None:
    assert encode_bits([0, 9]) == b"\x01\x02"
    assert encode_bits([]) == b""


@pytest.mark.parametrize("number", [-1, 8 * 128])
def test_bit_beyond_the_bitmap_is_refused(number: int) -> None:
    with pytest.raises(LocalProtocolError, match="is not within 128 bytes"):
        encode_bits([number])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit into an event"):
        Event(1 << 16, 0, 0).encode()
    with pytest.raises(LocalProtocolError, match="129 bytes do not fit"):
        encode_config(ConfigSelect.ID_NAME, 0, bytes(129))
    with pytest.raises(LocalProtocolError, match="does not fit"):
        DevIds(vendor=1 << 16).encode()
    with pytest.raises(LocalProtocolError, match="does not fit"):
        AbsInfo(0, 1 << 31).encode()


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="7 bytes are not an event"):
        Event.decode(bytes(7))
    with pytest.raises(RemoteProtocolError, match="19 bytes are too few"):
        AbsInfo.decode(bytes(19))
    with pytest.raises(RemoteProtocolError, match="7 bytes are too few"):
        DevIds.decode(bytes(7))


def linux_codes() -> dict[str, int]:
    """Return what Linux's header defines."""
    text = HEADER.read_text()
    found = re.findall(r"^#define\s+(\w+)\s+(0x[0-9a-f]+|\d+)\b", text, re.MULTILINE | re.IGNORECASE)
    return {name: int(number, 0) for name, number in found}


def our_codes() -> dict[str, int]:
    enums = {"EV": "EventType", "SYN": "Syn", "REL": "Rel", "ABS": "Abs", "LED": "Led", "REP": "Rep"}
    codes = {
        f"{prefix}_{member.name}": int(member)
        for prefix, name in {**enums, "INPUT_PROP": "Property"}.items()
        for member in getattr(input_codes, name)
    }
    codes |= {f"KEY_{name}": code for name, code in KEYS.items()}
    codes |= {f"BTN_{name}": code for name, code in BUTTONS.items()}
    return {**codes, "BTN_TOUCH": input_codes.BTN_TOUCH}


def test_codes_are_those_of_linux() -> None:
    linux = linux_codes()
    ours = our_codes()
    assert len(ours) > 150
    assert {name: linux.get(name) for name in ours} == ours
