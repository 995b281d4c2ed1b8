"""Layouts of GPIO devices, against the specification's offsets and its example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.gpio import (
    CONFIG_SIZE,
    IRQ_REQUEST,
    IRQ_RESPONSE,
    REQUEST,
    RESPONSE,
    GpioConfig,
    GpioFeature,
    IrqType,
    decode_names,
    encode_names,
)


def test_config_is_as_the_specification_has_it() -> None:
    assert GpioConfig(0x0201, 0x06050403).encode() == bytes([1, 2, 0, 0, 3, 4, 5, 6])
    assert CONFIG_SIZE == 8


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.binary(max_size=20))
def test_config_comes_back(ngpio: int, size: int, more: bytes) -> None:
    config = GpioConfig(ngpio, size)
    assert GpioConfig.decode(config.encode() + more) == config


def test_config_that_does_not_fit_or_is_cut_short() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        GpioConfig(0x10000).encode()
    with pytest.raises(RemoteProtocolError, match="not a configuration space of a GPIO device"):
        GpioConfig.decode(bytes(7))


def test_messages_are_little_endian_and_packed() -> None:
    assert REQUEST.pack(0x0201, 0x0403, 0x08070605) == bytes(range(1, 9))
    assert (RESPONSE.size, IRQ_REQUEST.pack(0x0201), IRQ_RESPONSE.size) == (2, b"\1\2", 1)


def test_names_of_the_specifications_example() -> None:
    names = ["MMC-CD", "", "", "", "", "Red LED Vdd", "", "ethernet reset", "", ""]
    assert encode_names(names) == b"MMC-CD\0\0\0\0\0Red LED Vdd\0\0ethernet reset\0\0\0"


NAMES = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=1)


@given(st.lists(NAMES | st.just(""), min_size=1, unique_by=lambda name: name or object()))
def test_names_come_back(names: list[str]) -> None:
    encoded = encode_names(names)
    assert encoded == b"" if not any(names) else decode_names(encoded, len(names)) == names


@given(st.binary(max_size=40), st.integers(0, 5))
def test_names_that_are_none_are_refused(data: bytes, count: int) -> None:
    try:
        names = decode_names(data, count)
    except RemoteProtocolError:
        return
    assert b"".join(name.encode() + b"\0" for name in names) == data
    assert len(names) == count


@pytest.mark.parametrize("names", [["a", "a"], ["a\0b"], ["ä"]])
def test_names_that_no_driver_may_get(names: list[str]) -> None:
    with pytest.raises(LocalProtocolError):
        encode_names(names)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        (IrqType.NONE, []),
        (IrqType.EDGE_RISING, [1]),
        (IrqType.EDGE_FALLING, [0]),
        (IrqType.EDGE_BOTH, [0, 1]),
        (IrqType.LEVEL_HIGH, [1]),
        (IrqType.LEVEL_LOW, [0]),
    ],
)
def test_when_a_line_interrupts(kind: IrqType, at: list[int]) -> None:
    assert [level for level in (0, 1) if kind.fires_at(level)] == at
    assert kind.is_level == kind.name.startswith("LEVEL")


def test_feature_names() -> None:
    assert str(GpioFeature.IRQ) == "IRQ"
