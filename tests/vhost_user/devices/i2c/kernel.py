"""The ioctls of Linux's i2c-dev, played: a bus with chips, for tests of buses of the host."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from smbus2 import smbus2
from smbus2.smbus2 import I2C_FUNCS, I2C_M_RD, I2C_RDWR, I2C_SLAVE, I2C_SMBUS, I2cFunc

if TYPE_CHECKING:
    import pytest

THERE = 0x48
"""Where there is a chip, which reads as 1, 2, 3; no other acknowledges."""

NAMES = {
    smbus2.I2C_SMBUS_QUICK: "quick",
    smbus2.I2C_SMBUS_BYTE: "byte",
    smbus2.I2C_SMBUS_BYTE_DATA: "byte data",
    smbus2.I2C_SMBUS_WORD_DATA: "word data",
    smbus2.I2C_SMBUS_PROC_CALL: "process call",
    smbus2.I2C_SMBUS_BLOCK_DATA: "block data",
    smbus2.I2C_SMBUS_I2C_BLOCK_DATA: "I2C block data",
}
"""Linux's kinds of SMBus commands."""


class Kernel:
    """Plays the ioctls of a bus."""

    def __init__(self) -> None:
        self.functions = int(I2cFunc.I2C)
        self.tells = False
        """Whether it says how many messages were done where some were not, as some adapters do."""
        self.is_gone = False
        self.busy: set[int] = set()
        """Addresses of chips that a driver of the host's has."""
        self.transfers: list[list[tuple[int, bool, bytes]]] = []
        self.commands: list[tuple[str, str, int, bytes]] = []
        """SMBus commands: "read" or "write", the kind, the command's code, what is written."""
        self._addresses: dict[int, int] = {}

    def play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of the kernel's ioctls."""
        monkeypatch.setattr(smbus2, "ioctl", self.ioctl)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, fd: int, request: int, argument: ctypes.Structure | int) -> int:
        os.fstat(fd)
        if request == I2C_FUNCS:
            assert isinstance(argument, ctypes.c_ulong)
            argument.value = self.functions
            return 0
        if request == I2C_SLAVE:
            assert isinstance(argument, int)
            if argument in self.busy:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            self._addresses[fd] = argument
            return 0
        if request == I2C_SMBUS:
            assert isinstance(argument, ctypes.Structure)
            return self._command(self._addresses[fd], argument)
        assert request == I2C_RDWR
        assert self.functions & I2cFunc.I2C
        assert isinstance(argument, ctypes.Structure)
        return self._transfer(argument)

    def _transfer(self, argument: ctypes.Structure) -> int:
        if self.is_gone:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        messages = [argument.msgs[number] for number in range(argument.nmsgs)]
        self.transfers.append(
            [(each.addr, each.flags == I2C_M_RD, bytes(each.buf[: each.len])) for each in messages]
        )
        for number, each in enumerate(messages):
            if each.addr != THERE:
                if self.tells:
                    return number
                raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
            if each.flags == I2C_M_RD:
                ctypes.memmove(each.buf, bytes(range(1, each.len + 1)), each.len)
        return len(messages)

    def _command(self, address: int, argument: ctypes.Structure) -> int:
        kind = NAMES[argument.size]
        way = "read" if argument.read_write == smbus2.I2C_SMBUS_READ else "write"
        block = argument.data.contents.block
        length = {"byte data": 1, "word data": 2, "process call": 2}.get(kind, 0)
        written = bytes(block[:length])
        if "block" in kind:
            written = bytes(block[1 : 1 + block[0]])
        size = block[0]
        self.commands.append((way, kind, argument.command, written if way == "write" else b""))
        if address != THERE:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if kind == "I2C block data" and way == "read":
            block[1 : 1 + size] = range(1, size + 1)
        elif way == "read" or kind == "process call":
            block[0], block[1] = 1, 2
        return 0
