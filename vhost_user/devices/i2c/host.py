"""I2C buses of the host: /dev/i2c-N through smbus2, and what --device-list says of them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.io.threads import run_in_thread
from protocol.program.command_line import UserError
from protocol.program.warnings import OnceLogger
from vhost_user.devices.i2c import smbus
from vhost_user.devices.i2c.chips.chip import check_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from vhost_user.devices.i2c.chips.chip import I2cMessage

SYSFS = Path("/sys/bus/i2c/devices")
"""Where the kernel names its adapters: i2c-N/name."""
DEVICES = Path("/dev")
"""Where i2c-dev makes i2c-N."""

_log = logging.getLogger("vhost_user.i2c")


@dataclass(frozen=True)
class HostChips:
    """One entry of a device list: a bus, by number or by its adapter's name, and addresses on it."""

    bus: str
    addresses: tuple[int, ...]


def parse_device_list(text: str) -> list[HostChips]:
    """Return the entries of `BUS:ADDRESS[:ADDRESS...],...`. Raises ValueError.

    Addresses are decimal, as for vhost-device-i2c of rust-vmm, or hexadecimal after 0x.
    """
    found: list[HostChips] = []
    for entry in text.split(","):
        bus, *addresses = (part.strip() for part in entry.split(":"))
        if not bus or not addresses:
            raise ValueError(f"'{entry}' is not BUS:ADDRESS[:ADDRESS...], as in 2:0x20:0x21")
        found.append(HostChips(bus, tuple(parse_address(address) for address in addresses)))
    buses = [each.bus for each in found]
    if twice := {bus for bus in buses if buses.count(bus) > 1}:
        raise ValueError(f"bus '{min(twice)}' is named twice; give all its addresses at once")
    return found


def parse_address(text: str) -> int:
    """Return the address of a chip: decimal, or hexadecimal after 0x. Raises ValueError."""
    try:
        address = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        raise ValueError(f"'{text}' is not an address; give one such as 0x48, or 72") from None
    check_address(text, address)
    return address


def find_bus(name: str, sysfs: Path = SYSFS) -> int:
    """Return the number of a bus that is given as such, or by its adapter's name. Raises UserError."""
    if name.isdecimal():
        return int(name)
    names = _adapter_names(sysfs)
    found = [bus for bus, its_name in names.items() if its_name == name]
    if not found:
        there = "; there are " + ", ".join(f"'{each}'" for each in names.values()) if names else ""
        raise UserError(f"no I2C adapter is called '{name}'{there}; 'i2cdetect -l' lists them")
    if len(found) > 1:
        raise UserError(f"{' and '.join(found)} are both called '{name}'; give the number of one")
    return int(found[0].removeprefix("i2c-"))


def _adapter_names(sysfs: Path) -> dict[str, str]:
    names = {}
    for path in sorted(sysfs.glob("i2c-*/name")):
        with contextlib.suppress(OSError):  # its adapter was unplugged as we looked
            names[path.parent.name] = path.read_text().strip()
    return names


class HostBus:
    """Some chips on an I2C bus of the host. A transfer is one ioctl, in a thread of its own.

    Where the host's adapter does SMBus commands only, a transfer has to be one of those (i2c_smbus.py).
    """

    def __init__(self, number: int, addresses: Sequence[int], devices: Path = DEVICES) -> None:
        """Open /dev/i2c-`number`. Raises UserError where it, or a chip, cannot be had."""
        self.addresses = frozenset(addresses)
        self._number = number
        self._path = devices / f"i2c-{number}"
        self._library = _import_smbus2()
        self._no_command, self._gone, self._no_thread = (OnceLogger(_log, 1) for _ in range(3))
        with ExitStack() as opened:
            # Each address has a descriptor, for the kernel keeps it there: two guests' threads may meet.
            self._chips = {address: self._open(address, opened) for address in sorted(self.addresses)}
            functions: int = next(iter(self._chips.values())).funcs
            self._does_i2c = bool(functions & self._library.I2cFunc.I2C)
            self._commands = smbus.commands_of(functions, self._library)
            if not self._does_i2c and not self._commands:
                raise UserError(
                    f"{self._path} does neither I2C transfers nor SMBus commands; see 'i2cdetect -F {number}'"
                )
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close it."""
        self._opened.close()

    async def transfer(self, messages: Sequence[I2cMessage]) -> int:
        """Do messages as one transfer; return how many the kernel says were done."""
        return await run_in_thread(self._transfer, messages, complain=self._complain_of_threads)

    def _complain_of_threads(self, reason: str) -> None:
        self._no_thread.warning(f"{self._path}: all else waits for each transfer: {reason}")

    def _transfer(self, messages: Sequence[I2cMessage]) -> int:
        try:
            return self._do_i2c(messages) if self._does_i2c else self._do_smbus(messages)
        except OSError as error:
            self._tell(error)
            return 0

    def _do_i2c(self, messages: Sequence[I2cMessage]) -> int:
        """Do a transfer. Raises OSError where the kernel does not say how far it came."""
        kind = self._library.i2c_msg
        given: list[Any] = [
            kind.read(message.address, message.size)
            if message.read
            else kind.write(message.address, message.data)
            for message in messages
        ]
        request = self._library.i2c_rdwr_ioctl_data.create(*given)
        # Not SMBus.i2c_rdwr(): some adapters fail by having done less, which it does not tell.
        done: int = fcntl.ioctl(self._chips[messages[0].address].fd, self._library.I2C_RDWR, request)
        for message, result in zip(messages[:done], given, strict=False):
            if message.read:
                message.data = bytes(result)
        return done

    def _tell(self, error: OSError) -> None:
        """Log why a transfer failed: what chips do all the time quietly, an adapter that is gone once."""
        if error.errno == errno.ENODEV and not self._path.exists():  # some say so of a chip that is not there
            self._gone.warning(f"{self._path} is gone: every transfer fails; start again once it is back")
        else:
            _log.debug("%s: a transfer failed: %s", self._path, error.strerror)

    def _do_smbus(self, messages: Sequence[I2cMessage]) -> int:
        """Do a transfer that is an SMBus command; none of one that is not. Raises OSError."""
        command = smbus.find(messages, self._commands)
        if command is None:
            what = smbus.describe(messages)
            self._no_command.warning(
                f"{self._path} does SMBus commands only: a transfer that is none fails, such as '{what}'"
            )
            return 0
        fd: int = self._chips[messages[0].address].fd
        smbus.perform(command, messages, fd, self._library)
        return len(messages)

    def _open(self, address: int, opened: ExitStack) -> Any:
        """Return the bus, opened for a chip."""
        bus = opened.enter_context(self._library.SMBus())
        try:
            bus.open(str(self._path))
        except FileNotFoundError:
            raise UserError(
                f"there is no {self._path}; 'modprobe i2c-dev' makes it, if there is such a bus"
            ) from None
        except PermissionError:
            raise UserError(f"may not open {self._path}; become a member of its group, often 'i2c'") from None
        except OSError as error:
            raise UserError(
                f"{self._path} is not an I2C bus: {error.strerror}; 'i2cdetect -l' lists those"
            ) from None
        self._claim(bus.fd, address)
        return bus

    def _claim(self, fd: int, address: int) -> None:
        """Direct SMBus commands to an address, which the kernel allows where no driver has its chip."""
        try:
            fcntl.ioctl(fd, self._library.I2C_SLAVE, address)
        except OSError as error:
            chip = f"{self._number}-{address:04x}"
            if error.errno != errno.EBUSY:
                raise UserError(f"cannot have {address:#04x} of {self._path}: {error.strerror}") from None
            raise UserError(
                f"{address:#04x} of {self._path} belongs to a driver of the host; "
                f"'echo {chip} > {SYSFS}/{chip}/driver/unbind' frees it"
            ) from None


def _import_smbus2() -> ModuleType:
    try:
        from smbus2 import smbus2
    except ImportError:
        raise UserError("buses of the host need smbus2; run: pip install 'qemu-companion[i2c]'") from None
    return smbus2
