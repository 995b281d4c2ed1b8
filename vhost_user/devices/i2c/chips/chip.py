"""Simulated I2C chips: their base classes, and how transfers reach them."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from protocol.virtio.i2c import MAX_MESSAGE
from protocol.words import plural
from vhost_user.own_code.containment import refuse_async
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

_log = logging.getLogger("vhost_user.i2c")

FIRST_ADDRESS, LAST_ADDRESS = 0x08, 0x77
"""The 7-bit addresses that are not reserved (I2C-bus specification, section 3.1.12)."""

IDLE = 0xFF
"""What a master reads where no chip pulls the line down."""

_CALLS = frozenset({"nack", "transfer", "get_register", "set_register"})
"""What is called over --control, where it may be async as well."""


class NackError(Exception):
    """A chip does not acknowledge: raised by its methods, it ends the transfer with an error."""


@dataclass(slots=True)
class I2cMessage:
    """One message of a transfer: from a start, or a repeated one, to the next start or the stop."""

    address: int
    """Seven bits."""
    read: bool = False
    data: bytes = b""
    """What is written; of a read, what was read."""
    size: int = 0
    """How many bytes are to be read."""


class I2cChip(Simulation):
    """A chip on the bus. Subclass it, and write `write()` and `read()`; RegisterChip has both for registers.

    Calls that are marked with `@call` can be made over --control as well. All run in the loop's thread:
    none may block. Any of the four methods of the bus may raise NackError. Anything else that they raise
    is a NACK as well, and its traceback is in the log, once for each place.
    """

    address_count = 1
    """How many addresses it has, its own the first of them; that is a multiple of how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.addressed = 0
        """To which of its addresses the message went that is being taken; 0 for `transfer`."""
        self._nacks = 0

    def __init_subclass__(cls, **arguments: object) -> None:
        """Raise TypeError for an async method that the bus calls."""
        super().__init_subclass__(**arguments)
        refuse_async(cls, I2cChip, but=_CALLS)

    def addresses_from(self, first: int) -> range:
        """Return its addresses. Raises ValueError where `first` cannot be the first of them."""
        count = self.address_count
        check_address(f"{first:#04x}", first)
        if first % count:
            raise ValueError(
                f"{first:#04x} is not an address of a chip that has {count}; "
                f"give a multiple of {count}, such as {first - first % count:#04x}"
            )
        return range(first, first + count)

    def start(self, *, read: bool) -> None:
        """Note a start, or a repeated one, with the chip's address."""

    def write(self, data: bytes) -> None:
        """Take what is written to the chip in one message, at least one byte. By default it takes nothing."""
        raise NackError("the chip cannot be written to")

    def read(self, size: int) -> bytes:
        """Return `size` bytes; those that are missing are read as 0xFF."""
        return b""

    def stop(self) -> None:
        """Note the end of a transfer that the chip had a part in."""

    async def run(self) -> None:
        """Do what goes on beside the bus, as long as the device is served; by default nothing."""

    def close(self) -> None:
        """Release what the chip holds of the host; its device calls this at the end."""

    @call
    def nack(self, count: int = 1) -> None:
        """Do not acknowledge the next `count` transfers; 0: acknowledge again."""
        if count < 0:
            raise CallError(f"{count} transfers cannot be refused; give 0 or more")
        self._nacks = count

    @call
    def transfer(self, data: bytes = b"", size: int = 0) -> bytes:
        """Write `data` to the chip, then read `size` bytes, as another master on the bus would.

        Raises CallError where the chip does not acknowledge, and whatever else its methods raise.
        """
        messages = [I2cMessage(0, data=data)] if data or not size else []
        if size:
            messages.append(I2cMessage(0, read=True, size=_checked_size(size)))
        done = run_transfer({0: self}, messages)
        if done < len(messages):
            raise CallError(f"the chip did not acknowledge message {done + 1} of {len(messages)}")
        return messages[-1].data if size else b""

    @call
    def get_register(self, register: int) -> int:
        """Return what is in a register, without the guest's knowledge."""
        raise CallError(f"{type(self).__name__} has no registers; use transfer")

    @call
    def set_register(self, register: int, value: int) -> None:
        """Change a register, also one that the guest cannot write."""
        raise CallError(f"{type(self).__name__} has no registers; use transfer")

    def take_start(self, message: I2cMessage) -> None:
        """Start with a message, unless the chip was told to refuse that. For the bus."""
        if self._nacks:
            self._nacks -= 1
            raise NackError("it was told to refuse")
        self.addressed = message.address
        self.start(read=message.read)


@dataclass(frozen=True)
class Register:
    """A register of a RegisterChip."""

    reset: int = 0
    """What is in it at first."""
    size: int = 1
    """Bytes."""
    mask: int = -1
    """The bits that the guest can write: all of them by default, 0 for a register that is read-only."""


class RegisterChip(I2cChip):
    """A chip with registers behind a pointer, mostly of 8 bits: the first byte of a write sets it.

    ::

        class Light(RegisterChip):
            registers = {0: Register(0x42, mask=0), 1: Register(size=2, mask=0)}

            @call
            def set_brightness(self, lux: int) -> None:
                self.set_register(1, lux)
    """

    registers: ClassVar[Mapping[int, Register]] = {}
    """By pointer. Others read as 0xFF, and take no data."""
    pointer_size: ClassVar[int] = 1
    """Bytes of the pointer, the most significant first."""
    byte_order: ClassVar[Literal["big", "little"]] = "big"
    """Of registers of several bytes; "little": the least significant first."""
    auto_increment: ClassVar[bool] = True
    """Whether the register after the one that was read or written is the next: otherwise it is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.pointer = 0
        self._values = {number: register.reset for number, register in self.registers.items()}

    def register_read(self, register: int) -> int:
        """Return what the guest gets from a register; override it for values that are made when asked for."""
        return self._values[register]

    def register_written(self, register: int, value: int) -> None:
        """Note what the guest has written into a register."""

    @call
    def get_register(self, register: int) -> int:
        """Return what is in a register, without the guest's knowledge."""
        self._find(register)
        return self._values[register]

    @call
    def set_register(self, register: int, value: int) -> None:
        """Change a register, also one that the guest cannot write."""
        limit = 1 << 8 * self._find(register).size
        if not 0 <= value < limit:
            raise CallError(f"{value} does not fit register {register:#x}: it holds 0 to {limit - 1}")
        self._values[register] = value

    def write(self, data: bytes) -> None:
        """Set the pointer, and write what follows into registers."""
        position = self.pointer_size
        if len(data) < position:
            raise NackError(f"{len(data)} byte of a pointer of {position}")
        self.pointer = int.from_bytes(data[:position], "big")
        while position < len(data):
            register = self.registers.get(self.pointer)
            if register is None:
                raise NackError(f"there is no register {self.pointer:#x}")
            part = data[position : position + register.size]
            if len(part) == register.size:  # half a register is not stored
                self._store(self.pointer, register, int.from_bytes(part, self.byte_order))
            position += register.size
            self._go_on()

    def read(self, size: int) -> bytes:
        """Return registers from the pointer on."""
        data = b""
        while len(data) < size:
            register = self.registers.get(self.pointer)
            if register is None:
                data += bytes([IDLE])
            else:
                data += self._encoded(self.pointer, register)
            self._go_on()
        return data[:size]

    def _encoded(self, number: int, register: Register) -> bytes:
        value: object = self.register_read(number)
        if not isinstance(value, int) or not 0 <= value < 1 << 8 * register.size:
            fits = f"0 to {(1 << 8 * register.size) - 1}"
            raise ValueError(f"register_read({number:#x}) has returned {value!r}, and not {fits}")
        return value.to_bytes(register.size, self.byte_order)

    def _store(self, number: int, register: Register, value: int) -> None:
        mask = register.mask
        self._values[number] = value = self._values[number] & ~mask | value & mask
        self.register_written(number, value)
        self.emit("written", register=number, value=value)

    def _go_on(self) -> None:
        if self.auto_increment:
            self.pointer = (self.pointer + 1) % (1 << 8 * self.pointer_size)

    def _find(self, number: int) -> Register:
        register = self.registers.get(number)
        if register is None:
            raise CallError(f"there is no register {number}; there are {', '.join(map(str, self.registers))}")
        return register


def check_address(text: str, address: int) -> None:
    """Raise ValueError where `address`, which is given as `text`, cannot be a chip's."""
    if not FIRST_ADDRESS <= address <= LAST_ADDRESS:
        raise ValueError(
            f"{text} is not an address of a chip; they are {FIRST_ADDRESS:#04x} to {LAST_ADDRESS:#04x}"
        )


Guard: TypeAlias = "Callable[[I2cChip], AbstractContextManager[object]]"
"""Makes what is entered around each use of a chip, for what a chip raises other than NackError."""


def unguarded(_: I2cChip) -> AbstractContextManager[object]:
    """Leave them to the caller."""
    return contextlib.nullcontext()


def run_transfer(
    chips: Mapping[int, I2cChip], messages: Sequence[I2cMessage], guard: Guard = unguarded
) -> int:
    """Do messages one after the other, with repeated starts; return how many were done.

    The first one that a chip does not acknowledge, or for which there is no chip, ends the transfer.
    """
    addressed: list[I2cChip] = []  # in this order, each once
    done = 0
    try:
        for message in messages:
            chip = chips.get(message.address)
            if chip is None or not _is_acknowledged(chip, message, addressed, guard):
                _log.debug("not acknowledged at %#04x", message.address)
                break
            done += 1
    finally:
        for chip in addressed:
            with guard(chip):
                chip.stop()
    return done


def _is_acknowledged(chip: I2cChip, message: I2cMessage, addressed: list[I2cChip], guard: Guard) -> bool:
    with guard(chip):
        try:
            chip.take_start(message)
            if not any(chip is other for other in addressed):  # two may be equal, or have no hash
                addressed.append(chip)
            _exchange(chip, message)
        except NackError as error:
            _log.debug("%s: %s", type(chip).__name__, error)
        else:
            return True
    return False


def _exchange(chip: I2cChip, message: I2cMessage) -> None:
    if not message.read:
        if message.data:
            chip.write(message.data)
    elif message.size:
        message.data = read_data(chip.read(message.size), message.size)


def read_data(data: object, size: int) -> bytes:
    """Return `size` bytes of the result of a read. Raises TypeError where it is not bytes."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a read of {plural(size, 'byte')} has returned {data!r}, and no bytes")
    return bytes(data[:size]).ljust(size, bytes([IDLE]))


def _checked_size(size: int) -> int:
    if not 0 < size <= MAX_MESSAGE:
        raise CallError(f"{size} bytes cannot be read at once; give 0 to {MAX_MESSAGE}")
    return size
