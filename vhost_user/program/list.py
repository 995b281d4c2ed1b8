"""`vhost-user list`: the devices, their options, and whether the QEMU of this machine can attach them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, print_result
from vhost_user.attachment.qemu import DEFAULT_PROGRAM, Qemu, ask
from vhost_user.devices import device_names, find_device
from vhost_user.program.options import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.device import VirtioDevice

PROGRAM = "vhost-user list"

_INDENT = "    "
_WIDTH = 96

_DESCRIPTION = """\
Print the devices that there are, each with what attaches it to a guest of this machine's QEMU, and with
the options that it has beside those of every device ('vhost-user run DEVICE --help' tells what they do).
"""


def add_list_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `list`; its options hold `run_list` as `run`."""
    parser = subparsers.add_parser("list", help="print the devices that there are", description=_DESCRIPTION)
    parser.add_argument(
        "--qemu",
        metavar="PROGRAM",
        default=DEFAULT_PROGRAM,
        help="the QEMU to ask (default: %(default)s)",
    )
    parser.set_defaults(run=run_list)


def run_list(options: argparse.Namespace) -> int:
    """Print the list; return the exit code."""
    qemu = ask(options.qemu)
    lines = [line for name in device_names() for line in [*_describe(name, qemu), ""]]
    return print_result(PROGRAM, "\n".join(lines[:-1]))


def _describe(name: str, qemu: Qemu) -> Sequence[str]:
    try:
        device = find_device(name)
    except UserError as error:
        return [name, f"{_INDENT}({error})"]
    return [
        f"{name}: {first_line(device)}",
        f"{_INDENT}QEMU: {_attachment(device, qemu)}",
        *(f"{_INDENT}{line}" for line in _options(device)),
    ]


def _attachment(device: type[VirtioDevice], qemu: Qemu) -> str:
    model = device.qemu_model()
    if not qemu.version:
        return f"{model}; there is no QEMU '{qemu.program}' here to be asked whether it has it"
    if qemu.attaches(device):
        return f"{model}, which {qemu.name} has" + (f" ({device.qemu_limits})" if device.qemu_limits else "")
    return f"{model}, which {qemu.name} does not have; User Mode Linux attaches any device"


def _options(device: type[VirtioDevice]) -> list[str]:
    """Return the device's own options, as many as there is room for in each line."""
    parser = argparse.ArgumentParser(add_help=False)
    device.add_options(parser)
    if device.many_sockets:
        parser.add_argument("--socket-count", metavar="N")
    lines = [""]
    for action in parser._actions:
        option = " ".join([action.option_strings[-1], *_value(action)])
        if lines[-1] and len(lines[-1]) + len(option) > _WIDTH:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + option
    return [line for line in lines if line]


def _value(action: argparse.Action) -> list[str]:
    """Return what an option's value is called, if it has one."""
    if action.nargs == 0:
        return []
    if action.choices:
        return ["{" + ",".join(map(str, action.choices)) + "}"]
    return [str(action.metavar or action.dest.upper())]
