"""Layouts of console devices, against the specification's offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.console import (
    CONFIG_SIZE,
    CONTROL,
    EMERG_WR_OFFSET,
    ConsoleConfig,
    ControlEvent,
    ControlMessage,
    port_of,
    queues,
    receiveq,
    transmitq,
)


def test_config_is_where_the_specification_has_it() -> None:
    config = ConsoleConfig(cols=0x0102, rows=0x0304, max_nr_ports=0x05060708, emerg_wr=0x090A0B0C)
    assert config.encode() == bytes.fromhex("0201 0403 08070605 0c0b0a09")
    assert ConsoleConfig.decode(config.encode()) == config
    assert len(config.encode()) == CONFIG_SIZE
    assert config.encode()[EMERG_WR_OFFSET] == 0x0C


def test_config_that_does_not_fit_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        ConsoleConfig(cols=1 << 16).encode()


def test_config_that_is_short_is_theirs() -> None:
    with pytest.raises(RemoteProtocolError, match="not a configuration space of a console"):
        ConsoleConfig.decode(bytes(CONFIG_SIZE - 1))


def test_queues_are_numbered_as_the_specification_has_it() -> None:
    assert [(receiveq(port), transmitq(port)) for port in range(4)] == [(0, 1), (4, 5), (6, 7), (8, 9)]


@given(st.integers(0, 126))
def test_queue_belongs_to_its_port(port: int) -> None:
    assert port_of(receiveq(port)) == port_of(transmitq(port)) == port
    assert transmitq(port) < queues(port + 1)


def test_control_message_is_as_the_specification_has_it() -> None:
    message = ControlMessage(1, ControlEvent.PORT_NAME, 1, b"name")
    assert message.encode() == bytes.fromhex("01000000 0700 0100") + b"name"
    assert str(message) == "PORT_NAME port=1 value=1"
    assert str(ControlMessage(2, 99)) == "event 99 port=2 value=0"


@given(st.binary(max_size=64))
def test_control_message_is_decoded_or_refused(data: bytes) -> None:
    if len(data) < CONTROL.size:
        with pytest.raises(RemoteProtocolError):
            ControlMessage.decode(data)
    else:
        assert ControlMessage.decode(data).encode() == data


def test_control_message_that_does_not_fit_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        ControlMessage(1 << 32, ControlEvent.DEVICE_ADD).encode()
