"""The SMBus commands that I2C transfers are, for buses of the host that do nothing else.

A command puts the same bytes on the wire as the transfer that it stands for (SMBus 3.2, section 6.5). A
transfer that is not a command is not done in parts, for a chip can tell a stop from a repeated start.
"""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from vhost_user.devices.i2c.chips.chip import I2cMessage


@dataclass(frozen=True)
class Command:
    """One of the commands that there are, and the transfers that it stands for."""

    kind: str
    """Its name in smbus2, after I2C_SMBUS_."""
    function: str
    """The name, in smbus2.I2cFunc, of the bit of a bus that does it."""
    written: range | None = None
    """How many bytes the first message may write; None: none does."""
    read: range | None = None
    """How many bytes the last message may read; None: none does."""

    def stands_for(self, written: bytes | None, size: int | None) -> bool:
        """Tell whether it is a transfer that writes `written`, then reads `size` bytes; None: does not."""
        length = None if written is None else len(written)
        if not (_is_within(length, self.written) and _is_within(size, self.read)):
            return False
        # The number of bytes that it puts after the code has to be what the transfer has there.
        return self.kind != "BLOCK_DATA" or (written is not None and written[1] == len(written) - 2)


def _is_within(length: int | None, lengths: range | None) -> bool:
    return length is None if lengths is None else length in lengths


_ZERO, _ONE, _TWO, _THREE = (range(length, length + 1) for length in range(4))
_BLOCK = range(1, 33)
_CODE_AND_BLOCK = range(2, 34)
_CODE_COUNT_AND_BLOCK = range(3, 35)

COMMANDS = (
    Command("QUICK", "SMBUS_QUICK", written=_ZERO),
    Command("QUICK", "SMBUS_QUICK", read=_ZERO),
    Command("BYTE", "SMBUS_WRITE_BYTE", written=_ONE),
    Command("BYTE", "SMBUS_READ_BYTE", read=_ONE),
    Command("BYTE_DATA", "SMBUS_WRITE_BYTE_DATA", written=_TWO),
    Command("BYTE_DATA", "SMBUS_READ_BYTE_DATA", written=_ONE, read=_ONE),
    Command("WORD_DATA", "SMBUS_WRITE_WORD_DATA", written=_THREE),
    Command("WORD_DATA", "SMBUS_READ_WORD_DATA", written=_ONE, read=_TWO),
    Command("PROC_CALL", "SMBUS_PROC_CALL", written=_THREE, read=_TWO),
    Command("I2C_BLOCK_DATA", "SMBUS_WRITE_I2C_BLOCK", written=_CODE_AND_BLOCK),
    Command("I2C_BLOCK_DATA", "SMBUS_READ_I2C_BLOCK", written=_ONE, read=_BLOCK),
    Command("BLOCK_DATA", "SMBUS_WRITE_BLOCK_DATA", written=_CODE_COUNT_AND_BLOCK),
)
"""The first one that a transfer is, and that a bus does, is done."""


def commands_of(functions: int, library: ModuleType) -> list[Command]:
    """Return the commands that a bus with these `functions` does. `library` is smbus2.smbus2."""
    return [command for command in COMMANDS if functions & library.I2cFunc[command.function]]


def find(messages: Sequence[I2cMessage], commands: Sequence[Command]) -> Command | None:
    """Return which of the commands a transfer is; None for one that is none."""
    if len({message.address for message in messages}) != 1:
        return None
    shape: tuple[bytes | None, int | None]
    match messages:
        case [only]:
            shape = (None, only.size) if only.read else (only.data, None)
        case [first, second] if second.read and not first.read:
            shape = first.data, second.size
        case _:
            return None
    return next((command for command in commands if command.stands_for(*shape)), None)


def perform(command: Command, messages: Sequence[I2cMessage], fd: int, library: ModuleType) -> None:
    """Do a transfer that is this command over `fd`, of a bus, for which its chip's address is set.

    What is read is in the last message then. Raises OSError where the chip or the bus fails it.
    """
    first, last = messages[0], messages[-1]
    code, data = (b"", b"") if first.read else (first.data[:1], first.data[1:])
    is_read = last.read and command.kind != "PROC_CALL"
    argument = library.i2c_smbus_ioctl_data.create(
        library.I2C_SMBUS_READ if is_read else library.I2C_SMBUS_WRITE,
        int.from_bytes(code, "big"),
        getattr(library, f"I2C_SMBUS_{command.kind}"),
    )
    _put(argument.data.contents, command, data, last.size)
    fcntl.ioctl(fd, library.I2C_SMBUS, argument)
    if last.read:
        last.data = _result(argument.data.contents, command, last.size)


def _put(union: Any, command: Command, data: bytes, size: int) -> None:
    """Put what is written where the kernel wants it; of a block that is read, how long it is."""
    if command.kind == "BLOCK_DATA":
        data = data[1:]
    if "BLOCK" in command.kind:
        union.block[0] = size or len(data)
        union.block[1 : 1 + len(data)] = data
    else:
        union.word = int.from_bytes(data, "little")  # SMBus has the low byte first


def _result(union: Any, command: Command, size: int) -> bytes:
    if "BLOCK" in command.kind:
        return bytes(union.block[1 : 1 + size])
    word: int = union.byte if size == 1 else union.word
    return word.to_bytes(size, "little") if size else b""


def describe(messages: Sequence[I2cMessage]) -> str:
    """Return what a transfer does, for people."""
    return ", ".join(
        f"read {message.size}" if message.read else f"write {len(message.data)}" for message in messages
    )
