"""The options of vhost-user-gpio: the lines of the device, and their chips."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from protocol.program.command_line import UserError
from protocol.virtio.gpio import MAX_LINES
from protocol.words import plural
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.gpio.device import Gpio
from vhost_user.devices.gpio.host import open_chip
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine, check_name
from vhost_user.simulation.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.gpio.chip import Chip
    from vhost_user.devices.gpio.simulation import Level

LINE_SYNTAX = "NAME[,initial=0|1][,active-low]"
LIST_SYNTAX = "CHIP[=LINE,...][:CHIP...]"

_HOW = f"--line {LINE_SYNTAX} for a simulated one, or -l {LIST_SYNTAX} for those of the host"


class ChipChoice(NamedTuple):
    """An element of --device-list."""

    chip: str
    """A number, a name or a path of a chip of the host; "" for a simulated one."""
    lines: tuple[int, ...] = ()
    """The lines of the chip that the guest gets; all of them if empty."""
    simulated: int = 0
    """The number of lines of a simulated chip."""


class GpioProgram(DeviceProgram):
    """vhost-user-gpio."""

    device = Gpio
    qemu_limits = "QEMU before 9.0 does not pass interrupts on"
    many_sockets = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add `--device-list`, as rust-vmm's vhost-device-gpio has it, and `--line`."""
        add_options(parser)

    def make(self, options: argparse.Namespace) -> list[Gpio]:
        """Return a device for each socket, with a chip of its own. Raises UserError."""
        chips = chips_from(options, max(len(self.socket_paths(options)), 1))
        devices = [self.device(chip) for chip in chips]
        if len(devices) > 1 and any(device.simulation for device in devices):
            together = Simulation()
            for number, device in enumerate(devices):
                if device.simulation is not None:
                    together.add_part(str(number), device.simulation)
                device.simulation = together
        return devices


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of rust-vmm's vhost-device-gpio, and those of simulated lines."""
    parser.add_argument(
        "-l",
        "--device-list",
        metavar="LIST",
        type=parse_device_list,
        help=f"chips, one for each socket: {LIST_SYNTAX}; sN is a simulated chip of N lines",
    )
    parser.add_argument(
        "--line",
        metavar="LINE",
        type=parse_line,
        action="append",
        default=[],
        help=f"a simulated line: {LINE_SYNTAX}; may be given several times",
    )


def parse_line(text: str) -> SimulatedLine:
    """Return a line as --line describes it. For argparse: raises ArgumentTypeError."""
    name, *settings = text.split(",")
    initial: Level | None = None
    active_low = False
    try:
        check_name(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    for setting in settings:
        if setting in {"initial=0", "initial=1"}:
            initial = 1 if setting.endswith("1") else 0
        elif setting == "active-low":
            active_low = True
        else:
            raise argparse.ArgumentTypeError(f"'{setting}' is not a setting of a line; write {LINE_SYNTAX}")
    return SimulatedLine(name, initial=initial, active_low=active_low)


def parse_device_list(text: str) -> list[ChipChoice]:
    """Return the chips that --device-list names. For argparse: raises ArgumentTypeError."""
    return [_parse_choice(part) for part in text.split(":")]


def _parse_choice(text: str) -> ChipChoice:
    chip, equals, lines = text.partition("=")
    if chip[:1] == "s" and chip[1:].isdecimal() and not equals:
        count = int(chip[1:])
        if not 1 <= count <= MAX_LINES:
            raise argparse.ArgumentTypeError(f"'{text}': a simulated chip has 1 to {MAX_LINES} lines")
        return ChipChoice("", simulated=count)
    if not chip:
        raise argparse.ArgumentTypeError(f"'{text}' names no chip; write {LIST_SYNTAX}, as in 0=4,17")
    return ChipChoice(chip, tuple(_parse_numbers(text, lines)) if equals else ())


def _parse_numbers(text: str, lines: str) -> list[int]:
    numbers: list[int] = []
    for part in lines.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MAX_LINES):
            raise argparse.ArgumentTypeError(f"'{part}' in '{text}' is not a line; write as in 0=4,17,20-23")
        numbers += range(int(first), int(last) + 1)
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"'{text}' names a line twice")
    return numbers


def chips_from(options: argparse.Namespace, sockets: int) -> list[Chip]:
    """Return the chips that a command line describes, one for each socket. Raises UserError."""
    choices: Sequence[ChipChoice] | None = options.device_list
    if (choices is None) == (not options.line):
        raise UserError(f"give lines: {_HOW}")
    if choices is None:
        choices = [ChipChoice("")]
    if len(choices) != sockets:
        raise UserError(
            f"{plural(len(choices), 'chip')} for {plural(sockets, 'socket')}; each socket serves one,"
            f" give --socket-count {len(choices)}"
        )
    chips: list[Chip] = []
    try:
        for choice in choices:
            chips.append(_make(choice, options.line))
    except BaseException:
        for chip in chips:
            chip.close()
        raise
    return chips


def _make(choice: ChipChoice, lines: Sequence[SimulatedLine]) -> Chip:
    if choice.chip:
        return open_chip(choice.chip, choice.lines)
    try:
        return SimulatedChip(lines or [SimulatedLine() for _ in range(choice.simulated)])
    except ValueError as error:
        raise UserError(f"{error}; give each --line a name of its own") from None
