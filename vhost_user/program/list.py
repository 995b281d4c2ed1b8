"""`vhost-user list`: the devices, their options, and the QEMU device of each."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, fail, print_result
from vhost_user.device_program.qemu import DEFAULT_PROGRAM, Qemu, ask
from vhost_user.own_code.class_loading import code_of_others
from vhost_user.program.installed import find_all
from vhost_user.program.options import parser_and_own_options

if TYPE_CHECKING:
    import argparse

    from vhost_user.device_program import DeviceProgram

PROGRAM = "vhost-user list"

_INDENT = "    "
_WIDTH = 96

_DESCRIPTION = """\
Print the installed devices, each with the device of this machine's QEMU that attaches it to a guest, and
with its own options ('vhost-user run DEVICE --help' describes them). A device of another package that
cannot be used is named on standard error.
"""


def add_list_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `list`; its options hold `run_list` as `run`."""
    parser = subparsers.add_parser("list", help="print the installed devices", description=_DESCRIPTION)
    parser.add_argument(
        "--qemu",
        metavar="PROGRAM",
        default=DEFAULT_PROGRAM,
        help="the QEMU to ask (default: %(default)s)",
    )
    parser.set_defaults(run=run_list)


def run_list(options: argparse.Namespace) -> int:
    """Print the devices that work, and an error of one line for each other one; return the exit code."""
    qemu = ask(options.qemu)
    programs, entries, errors = find_all()
    paragraphs = []
    for name, program in programs.items():
        try:
            with entries[name].named() if name in entries else nullcontext():
                paragraphs.append("\n".join(_describe(name, program, qemu)))
        except UserError as error:
            errors.append(error)
    code = print_result(PROGRAM, "\n\n".join(paragraphs))
    for each in errors:
        fail(PROGRAM, each)
    return code


def _describe(name: str, program: DeviceProgram, qemu: Qemu) -> list[str]:
    """Return the lines for a device. Raises UserError."""
    return [
        f"{name}: {program.summary}",
        f"{_INDENT}QEMU: {_attachment(program, qemu)}",
        *(f"{_INDENT}{line}" for line in _options(name, program)),
    ]


def _attachment(program: DeviceProgram, qemu: Qemu) -> str:
    with code_of_others("its qemu_model() does not work"):
        model = program.qemu_model()
    if not qemu.version:
        return f"{model}; there is no QEMU '{qemu.program}' here to be asked whether it has it"
    if qemu.attaches(model, program.device_id):
        limits = f" ({program.qemu_limits})" if program.qemu_limits else ""
        return f"{model}, which {qemu.name} has{limits}"
    return f"{model}, which {qemu.name} does not have; User Mode Linux attaches any device"


def _options(name: str, program: DeviceProgram) -> list[str]:
    """Return the device's own options, with as many on a line as fit. Raises UserError."""
    _, actions = parser_and_own_options(program, name)
    words = [" ".join([*action.option_strings[-1:], *_value(action)]) for action in actions]
    if program.many_sockets:
        words.append("--socket-count N")
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > _WIDTH:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + word
    return [line for line in lines if line]


def _value(action: argparse.Action) -> list[str]:
    """Return the name of an option's value, if it has one; of a positional argument, its own name."""
    if action.nargs == 0:
        return []
    if action.choices:
        return ["{" + ",".join(map(str, action.choices)) + "}"]
    if isinstance(action.metavar, tuple):
        return list(action.metavar)
    return [str(action.metavar or action.dest.upper())]
