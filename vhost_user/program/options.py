"""The options of every device, by QEMU's conventions for back-end programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol import __version__
from protocol.program.access import access_from, add_access_options, given_options
from protocol.program.command_line import (
    TWO_SOCKETS,
    OneLineParser,
    UserError,
    add_log_options,
    parsed_by,
    whole_number,
)
from vhost_user.device_program.qemu import DEFAULT_PROGRAM
from vhost_user.own_code.class_loading import code_of_others
from vhost_user.own_code.containment import in_one_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhost_user.device_program import DeviceProgram

PRINT_CAPABILITIES = "--print-capabilities"

MAX_SOCKETS = 256
"""The largest number of sockets of one program."""


def build_parser(program: DeviceProgram, name: str) -> argparse.ArgumentParser:
    """Return the parser for the command line of a device. Raises UserError where its options clash."""
    parser, _ = parser_and_own_options(program, name)
    return parser


def parser_and_own_options(
    program: DeviceProgram, name: str
) -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """Return the parser for the command line of a device, and the options that are the device's own.

    Raises UserError where the device cannot add its options.
    """
    parser = OneLineParser(prog=name, description=program.summary.replace("%", "%%"))
    parser.add_argument("--version", action="version", version=f"{name} (qemu-companion) {__version__}")
    _add_socket_options(parser, many=program.many_sockets)
    _add_program_options(parser, program)
    common = list(parser._actions)
    with code_of_others(f"{program.name} cannot add its options"):
        program.add_options(parser.add_argument_group("device"))  # type: ignore[arg-type]  # it has add_argument()
    return parser, [action for action in parser._actions if action not in common]


def parse_options(program: DeviceProgram, name: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exit 2 with one line where it is wrong.

    Raises UserError where the device's own part of it does not work.
    """
    parser = build_parser(program, name)
    try:
        options = parser.parse_args(argv)
        options.program = name
        paths = program.socket_paths(options)
    except UserError:
        raise
    except Exception as error:  # a mistake in a device of the user's
        raise UserError(f"{program.name} cannot read its options: {in_one_line(error)}") from error
    if [bool(paths), options.fd is not None, options.connect is not None].count(True) != 1:
        parser.error("give one of --socket-path, --fd and --connect")
    if options.control in paths:
        parser.error(f"argument --control: {TWO_SOCKETS.format(options.control)}")
    if program.many_sockets and options.socket_count is not None and not paths:
        parser.error("--socket-count needs --socket-path")
    if (access := access_from(options)) and not paths:
        parser.error(
            f"{given_options(access)}: for a socket that we make; give --socket-path, or leave it out"
        )
    return options


def _add_socket_options(parser: argparse.ArgumentParser, *, many: bool) -> None:
    group = parser.add_argument_group(
        "socket", "Give one of --socket-path, --fd and --connect, to reach the front-end (QEMU)."
    )
    group.add_argument(
        "-s", "--socket-path", metavar="PATH", help="listen on PATH, which the front-end connects to"
    )
    group.add_argument(
        "--fd",
        type=whole_number(0, 1 << 20),
        metavar="N",
        help="use the inherited descriptor N: a socket that listens or is connected",
    )
    group.add_argument(
        "--connect", metavar="PATH", help="connect to PATH, where the front-end listens (server=on)"
    )
    if many:
        group.add_argument(
            "-c",
            "--socket-count",
            type=whole_number(1, MAX_SOCKETS),
            metavar="N",
            help="serve N front-ends: listen on PATH0, PATH1 and so on",
        )
    add_access_options(group, "front-end's socket")


def _add_program_options(parser: argparse.ArgumentParser, program: DeviceProgram) -> None:
    group = parser.add_argument_group("program")
    group.add_argument(
        "--without",
        metavar="FEATURE",
        type=parsed_by(program.find_feature),
        action="append",
        default=[],
        help="do not offer FEATURE, of the device, its rings or vhost-user, such as RING_PACKED or "
        "INBAND_NOTIFICATIONS; may be given several times",
    )
    group.add_argument(
        "--iommu",
        action="store_true",
        help="let the guest's IOMMU translate addresses (QEMU: iommu_platform=on,ats=on)",
    )
    group.add_argument(
        "--control", metavar="PATH", help="let 'vhost-user control PATH' change what is simulated"
    )
    add_log_options(group, "log each message of the front-end")
    group.add_argument(
        PRINT_CAPABILITIES,
        action="store_true",
        help="print the type and the capabilities of this program as JSON, whatever else is given, and exit",
    )
    group.add_argument(
        "--print-qemu-args", action="store_true", help="print the QEMU options for this device, and exit"
    )
    group.add_argument(
        "--print-libvirt-xml",
        action="store_true",
        help="print the elements of a libvirt domain for this device, and exit",
    )
    group.add_argument(
        "--qemu",
        metavar="PROGRAM",
        help=f"print them for this QEMU, which is asked for its version (default: {DEFAULT_PROGRAM})",
    )
