"""Buses of the host that do SMBus commands only: the commands that a guest's transfers become."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from smbus2.smbus2 import I2cFunc

from tests.vhost_user.devices.i2c.kernel import THERE, Kernel
from vhost_user.devices.i2c.chips.chip import I2cMessage
from vhost_user.devices.i2c.host import HostBus

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = int(I2cFunc.SMBUS_EMUL | I2cFunc.SMBUS_BLOCK_DATA | I2cFunc.SMBUS_PROC_CALL)
PIIX4 = int(
    I2cFunc.SMBUS_QUICK
    | I2cFunc.SMBUS_BYTE
    | I2cFunc.SMBUS_BYTE_DATA
    | I2cFunc.SMBUS_WORD_DATA
    | I2cFunc.SMBUS_BLOCK_DATA
)
"""What AMD's chip sets do: no I2C blocks."""

LONG = bytes(range(100, 132))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    kernel = Kernel()
    kernel.functions = EVERYTHING
    kernel.play(monkeypatch)
    (tmp_path / "i2c-7").touch()
    return kernel


def write(data: bytes = b"", address: int = THERE) -> I2cMessage:
    return I2cMessage(address, data=data)


def read(size: int = 0, address: int = THERE) -> I2cMessage:
    return I2cMessage(address, read=True, size=size)


@pytest.mark.parametrize(
    ("messages", "command", "result"),
    [
        ([write()], ("write", "quick", 0, b""), b""),
        ([read()], ("read", "quick", 0, b""), b""),
        ([write(b"\x05")], ("write", "byte", 5, b""), b""),
        ([read(1)], ("read", "byte", 0, b""), b"\1"),
        ([write(b"\x05\x06")], ("write", "byte data", 5, b"\x06"), b""),
        ([write(b"\x05\x06\x07")], ("write", "word data", 5, b"\x06\x07"), b""),
        ([write(b"\x05\x06\x07\x08")], ("write", "I2C block data", 5, b"\x06\x07\x08"), b""),
        ([write(b"\x05" + LONG)], ("write", "I2C block data", 5, LONG), b""),
        ([write(b"\x05\x20" + LONG)], ("write", "block data", 5, LONG), b""),  # too long for a block of I2C
        ([write(b"\x05"), read(1)], ("read", "byte data", 5, b""), b"\1"),
        ([write(b"\x05"), read(2)], ("read", "word data", 5, b""), b"\1\2"),
        ([write(b"\x05"), read(3)], ("read", "I2C block data", 5, b""), b"\1\2\3"),
        ([write(b"\x05"), read(32)], ("read", "I2C block data", 5, b""), bytes(range(1, 33))),
        ([write(b"\x05\x06\x07"), read(2)], ("write", "process call", 5, b"\x06\x07"), b"\1\2"),
    ],
)
async def test_transfer_is_the_command_with_the_same_bytes(
    kernel: Kernel, tmp_path: Path, messages: list[I2cMessage], command: tuple[object, ...], result: bytes
) -> None:
    with closing(HostBus(7, [THERE], tmp_path)) as bus:
        assert await bus.transfer(messages) == len(messages)
    assert kernel.commands == [command]
    assert b"".join(message.data for message in messages if message.read) == result


async def test_bus_without_blocks_of_i2c_gets_those_of_smbus(kernel: Kernel, tmp_path: Path) -> None:
    """On the wire they are the same, once the first byte says how many come after it."""
    kernel.functions = PIIX4
    with closing(HostBus(7, [THERE], tmp_path)) as bus:
        assert await bus.transfer([write(b"\x05\x03abc")]) == 1
        assert await bus.transfer([write(b"\x05\x02abc")]) == 0
    assert kernel.commands == [("write", "block data", 5, b"abc")]


async def test_bus_without_bytes_and_words_gets_blocks(kernel: Kernel, tmp_path: Path) -> None:
    kernel.functions = int(I2cFunc.SMBUS_I2C_BLOCK)
    with closing(HostBus(7, [THERE], tmp_path)) as bus:
        messages = [write(b"\x05"), read(2)]
        assert await bus.transfer(messages) == 2
        assert messages[1].data == b"\1\2"
        assert await bus.transfer([write(b"\x05\x06")]) == 1
    assert [kind for _, kind, _, _ in kernel.commands] == ["I2C block data", "I2C block data"]


@pytest.mark.parametrize(
    "messages",
    [
        [read(2)],
        [write(b"\x05"), read(33)],
        [write(b"\x05"), read(0)],
        [write(b"\x05\x06"), read(1)],
        [write(b"\x05" + LONG + b"!")],
        [read(1), write(b"\x05")],
        [write(b"\x05"), write(b"\x06")],
        [write(b"\x05"), read(1), read(1)],
        [write(b"\x05"), read(1, THERE + 1)],
    ],
)
async def test_transfer_that_is_no_command_is_not_begun(
    kernel: Kernel, tmp_path: Path, messages: list[I2cMessage], caplog: pytest.LogCaptureFixture
) -> None:
    with closing(HostBus(7, [THERE, THERE + 1], tmp_path)) as bus, caplog.at_level(logging.WARNING):
        assert await bus.transfer(messages) == 0
        assert await bus.transfer(messages) == 0
        assert await bus.transfer([write()]) == 1
    assert kernel.commands == [("write", "quick", 0, b"")]
    (told,) = caplog.messages  # once
    assert "i2c-7 does SMBus commands only" in told
    size = messages[-1].size if messages[-1].read else len(messages[-1].data)
    assert f"{'read' if messages[-1].read else 'write'} {size}" in told


async def test_chip_that_does_not_acknowledge(kernel: Kernel, tmp_path: Path) -> None:
    with closing(HostBus(7, [THERE, THERE + 1], tmp_path)) as bus:
        assert await bus.transfer([write(b"\x05", THERE + 1), read(1, THERE + 1)]) == 0
        messages = [write(b"\x05"), read(1)]
        assert await bus.transfer(messages) == 2
        assert messages[1].data == b"\1"


async def test_bus_of_i2c_transfers_is_given_those(kernel: Kernel, tmp_path: Path) -> None:
    kernel.functions |= int(I2cFunc.I2C)
    with closing(HostBus(7, [THERE], tmp_path)) as bus:
        assert await bus.transfer([write(b"\x05"), read(1)]) == 2
    assert not kernel.commands
    assert len(kernel.transfers) == 1
