"""The options of vhost-user-input, as in C and Rust, and of simulated devices."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.program.units import parse_time
from vhost_user.device_program import DeviceProgram
from vhost_user.devices.input.device import Input
from vhost_user.devices.input.evdev import open_evdev
from vhost_user.devices.input.player import InputDevices, Player, Printer, open_script
from vhost_user.devices.input.pointers import DEFAULT_SIZE, Mouse, Size, Tablet
from vhost_user.devices.input.simulation import DEFAULT_PACE, Keyboard
from vhost_user.devices.input.touch import DEFAULT_SLOTS, MAX_SLOTS, Touchscreen

if TYPE_CHECKING:
    from vhost_user.devices.input.evdev import EvdevSource
    from vhost_user.devices.input.simulation import SimulatedInput

_KINDS = {
    "keyboard": "a keyboard",
    "mouse": "a mouse",
    "tablet": "a pointer with absolute positions",
    "touchscreen": "a touch screen",
}
_MAX_PIXELS = 32768


class InputProgram(DeviceProgram):
    """vhost-user-input."""

    device = Input
    capabilities = ("evdev-path", "no-grab")
    qemu_limits = "QEMU 7.2 attaches it with KVM only"
    for_one_guest = True

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of libvhost-user's vhost-user-input and rust-vmm's vhost-device-input, and ours."""
        add_options(parser)

    def socket_paths(self, options: argparse.Namespace) -> list[str]:
        """Return the path of each device's socket: numbered from 0 where there are several."""
        path = options.socket_path
        if path is None:
            return []
        count = len(options.event_list or options.kinds or [])
        return [f"{path}{number}" for number in range(count)] if count > 1 or options.event_list else [path]

    def make(self, options: argparse.Namespace) -> list[Input]:
        """Return the devices that the command line describes, in its order. Raises UserError."""
        if not options.kinds:
            return [self.device(source) for source in sources_from(options)]
        simulation, tasks = simulated_from(options)
        first, *others = simulation.devices.values()
        devices = [self.device(first, *tasks), *map(self.device, others)]
        for device in devices:
            device.simulation = simulation
        return devices


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vhost-user-input."""
    _add_host_options(parser)
    for kind, what in _KINDS.items():
        parser.add_argument(
            f"--{kind}", action="append_const", dest="kinds", const=kind, help=f"simulate {what}"
        )
    parser.add_argument(
        "--script", metavar="FILE", help="let the simulated devices do what FILE says; - is standard input"
    )
    parser.add_argument(
        "--pace",
        metavar="TIME",
        type=parsed_by(parse_time),
        default=f"{DEFAULT_PACE * 1000:g}ms",
        help="time between two actions of the script (default: %(default)s)",
    )
    parser.add_argument("--repeat", action="store_true", help="let the guest repeat a key that is held down")
    parser.add_argument(
        "--size",
        metavar="WIDTHxHEIGHT",
        type=_size,
        default=f"{DEFAULT_SIZE.width}x{DEFAULT_SIZE.height}",
        help="size of the screen under tablet and touch screen (default: %(default)s)",
    )
    parser.add_argument(
        "--slots",
        metavar="N",
        type=whole_number(1, MAX_SLOTS),
        default=DEFAULT_SLOTS,
        help="number of fingers that a touch screen tells apart; 1: no multi-touch (default: %(default)s)",
    )
    parser.add_argument(
        "--print-events", action="store_true", help="print what the guest sends, such as the state of a LED"
    )


def _add_host_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--evdev-path", metavar="PATH", help="pass the host's input device PATH to the guest"
    )
    parser.add_argument(
        "-e",
        "--event-list",
        metavar="PATH[,PATH...]",
        type=_paths,
        help="pass several devices to the guest, the first at the socket PATH0, the next at PATH1 and so on",
    )
    parser.add_argument(
        "-n", "--no-grab", action="store_true", help="let the host receive the events of its device, too"
    )


def simulated_from(options: argparse.Namespace) -> tuple[InputDevices, list[Player | Printer]]:
    """Return the simulated devices and the tasks beside them; the caller closes both. Raises UserError."""
    _check(options, len(options.kinds))
    devices = InputDevices([_simulated(kind, options) for kind in options.kinds])
    tasks: list[Player | Printer] = [Printer(devices)] if options.print_events else []
    if options.script is not None:
        tasks.append(Player(open_script(options.script, devices.parser), devices))
    return devices, tasks


def sources_from(options: argparse.Namespace) -> list[EvdevSource]:
    """Open the devices of the host that are passed on; the caller closes them. Raises UserError."""
    paths = options.event_list or [options.evdev_path]
    _check(options, len(paths))
    opened: list[EvdevSource] = []
    try:
        for path in paths:
            opened.append(open_evdev(path, grab=not options.no_grab))
    except UserError:
        for source in opened:
            source.close()
        raise
    return opened


def _check(options: argparse.Namespace, count: int) -> None:
    """Raise UserError for options that exclude each other."""
    chosen = [bool(options.kinds), options.evdev_path is not None, options.event_list is not None]
    if chosen.count(True) != 1:
        kinds = ", ".join(f"--{kind}" for kind in _KINDS)
        raise UserError(f"give simulated devices ({kinds}), or --evdev-path, or --event-list")
    if not options.kinds and (options.script is not None or options.control is not None):
        raise UserError("a script or --control is for simulated devices; add --keyboard or another one")
    if options.kinds and len(set(options.kinds)) < count:
        raise UserError("there can be one simulated device of each kind; start another program for more")
    if count > 1 and options.socket_path is None:
        raise UserError(f"{count} devices need a socket each; give --socket-path PATH for PATH0, PATH1, ...")


def _simulated(kind: str, options: argparse.Namespace) -> SimulatedInput:
    device: SimulatedInput
    if kind == "keyboard":
        device = Keyboard(repeats=options.repeat)
    elif kind == "mouse":
        device = Mouse()
    elif kind == "tablet":
        device = Tablet(options.size)
    else:
        device = Touchscreen(options.size, slots=options.slots)
    device.pace = options.pace
    return device


def _paths(text: str) -> list[str]:
    paths = text.split(",")
    if not all(paths):
        raise argparse.ArgumentTypeError(f"'{text}' names no devices; write them as /dev/input/event0,...")
    return paths


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text, re.ASCII)
    size = None if match is None else Size(int(match[1]), int(match[2]))
    if size is None or not all(2 <= length <= _MAX_PIXELS for length in size):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a size; write it as 1920x1080, at most {_MAX_PIXELS}"
        )
    return size
