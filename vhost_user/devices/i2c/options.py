"""The options of vhost-user-i2c, and the chips that they describe."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, parsed_by
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.i2c.chips.at24 import MODELS, At24
from vhost_user.devices.i2c.chips.chip import I2cChip
from vhost_user.devices.i2c.chips.lm75 import Lm75
from vhost_user.devices.i2c.device import I2c
from vhost_user.devices.i2c.host import HostBus, find_bus, parse_address, parse_device_list
from vhost_user.own_code.class_loading import load_class
from vhost_user.own_code.containment import in_one_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

CHIPS: dict[str, Callable[..., I2cChip]] = {
    "lm75": Lm75,
    **{name: partial(At24, name) for name in MODELS},
}
"""The chips that have a name on the command line."""


@dataclass(frozen=True)
class ChipOption:
    """A chip as the command line describes it: NAME@ADDRESS[,KEY=VALUE...]."""

    name: str
    address: int
    arguments: dict[str, str] = field(default_factory=dict)


def parse_chip(text: str) -> ChipOption:
    """Parse `NAME@ADDRESS[,KEY=VALUE...]`; a comma in a value is given twice. Raises ValueError."""
    chip, *rest = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    name, at, address = chip.rpartition("@")
    if not at or not name:
        raise ValueError(f"'{chip}' is not NAME@ADDRESS, as in lm75@0x48")
    arguments: dict[str, str] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"'{part}' is not KEY=VALUE")
        if key in arguments:
            raise ValueError(f"'{key}' is given twice")
        arguments[key] = value
    return ChipOption(name, parse_address(address), arguments)


class I2cProgram(DeviceProgram):
    """vhost-user-i2c."""

    device = I2c
    many_sockets = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add `--device-list` of rust-vmm's vhost-device-i2c, and `--chip`."""
        add_options(parser)

    def make(self, options: argparse.Namespace) -> list[I2c]:
        """Return a device for each guest, with the same chips. Raises UserError."""
        device = self.device(*buses_from(options))
        more = max(len(self.socket_paths(options)) - 1, 0)
        return [device, *(device.for_another_guest() for _ in range(more))]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vhost-user-i2c."""
    parser.add_argument(
        "-l",
        "--device-list",
        metavar="LIST",
        type=parsed_by(parse_device_list),
        action="extend",
        default=[],
        help="chips of the host: BUS:ADDRESS[:ADDRESS...],...; BUS is a number or its adapter's name",
    )
    parser.add_argument(
        "--chip",
        metavar="CHIP",
        type=parsed_by(parse_chip),
        action="append",
        default=[],
        help="a simulated chip, NAME@ADDRESS[,KEY=VALUE...]; NAME is lm75, 24c02 or another EEPROM, or"
        " MODULE:CLASS (may be repeated)",
    )


def buses_from(options: argparse.Namespace) -> tuple[dict[int, I2cChip], list[HostBus]]:
    """Make the chips, open the buses that a command line names; the caller closes them. Raises UserError."""
    if not options.chip and not options.device_list:
        raise UserError("the bus has no chips; give --chip lm75@0x48, or --device-list for chips of the host")
    taken: set[int] = set()
    chips: dict[int, I2cChip] = {}
    buses: list[HostBus] = []
    for entry in options.device_list:
        _take(entry.addresses, taken)
    with ExitStack() as made:
        for option in options.chip:
            chip = make_chip(option)
            made.callback(chip.close)
            _take(_addresses(option, chip), taken)
            chips[option.address] = chip
        for entry in options.device_list:
            bus = HostBus(find_bus(entry.bus), entry.addresses)
            made.callback(bus.close)
            buses.append(bus)
        made.pop_all()
    return chips, buses


def make_chip(option: ChipOption) -> I2cChip:
    """Return the chip that an option describes. Raises UserError."""
    factory = CHIPS.get(option.name) or _load(option.name)
    arguments = _converted(option, factory)
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:  # a mistake in a chip of the user's
        raise UserError(f"cannot make the chip {option.name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, OSError | TypeError | ValueError) else in_one_line(error)


def _addresses(option: ChipOption, chip: I2cChip) -> range:
    try:
        return chip.addresses_from(option.address)
    except ValueError as error:
        raise UserError(str(error)) from None


def _take(addresses: Iterable[int], taken: set[int]) -> None:
    """Add `addresses` to those that are taken. Raises UserError for one that is taken already."""
    for address in addresses:
        if address in taken:
            raise UserError(f"address {address:#04x} is given twice; the guest has one bus for all chips")
        taken.add(address)


def _load(where: str) -> type[I2cChip]:
    module_name, colon, class_name = where.partition(":")
    if not colon:
        raise UserError(f"there is no chip '{where}'; give one of {', '.join(CHIPS)}, or MODULE:CLASS")
    sys.path.insert(0, str(Path.cwd()))  # where users have their own, as with python -m
    try:
        found = load_class(where, "chip")
    finally:
        sys.path.pop(0)
    if not (isinstance(found, type) and issubclass(found, I2cChip)):
        raise UserError(f"{module_name} has no chip class {class_name}; one is derived from I2cChip")
    return found


def _converted(option: ChipOption, factory: Callable[..., I2cChip]) -> dict[str, object]:
    """Return the arguments for a chip, converted to the types of its annotations. Raises UserError."""
    try:
        known = inspect.signature(factory, eval_str=True).parameters
    except Exception:  # NameError for what is imported for a type checker only, or another: texts will do
        known = inspect.signature(factory).parameters
    arguments: dict[str, object] = {}
    for key, text in option.arguments.items():
        if key not in known:
            there = ", ".join(known) or "none"
            raise UserError(f"the chip {option.name} has no option '{key}'; there are: {there}")
        try:
            arguments[key] = _CONVERTERS.get(_plain(known[key].annotation), str)(text)
        except ValueError:
            raise UserError(f"'{text}' is not a value of '{key}' of the chip {option.name}") from None
    return arguments


def _plain(annotation: object) -> object:
    """Return X for `X | None`."""
    choices = [each for each in typing.get_args(annotation) if each is not types.NoneType]
    return choices[0] if isinstance(annotation, types.UnionType) and len(choices) == 1 else annotation


def _switch(text: str) -> bool:
    return {"on": True, "off": False}[text] if text in {"on", "off"} else _refuse(text)


def _refuse(text: str) -> bool:
    raise ValueError(text)


_CONVERTERS: dict[object, Callable[[str], object]] = {
    int: lambda text: int(text, 0),
    float: float,
    bool: _switch,
    Path: Path,
}
