"""vhost-user: the program that runs the devices, and its other commands."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import __version__
from protocol.program.command_line import (
    INTERRUPTED,
    OneLineParser,
    UserError,
    fail,
    prepare_standard_streams,
)
from vhost_user.devices import DEVICES
from vhost_user.program.control import add_control_parser
from vhost_user.program.installed import find, load_program
from vhost_user.program.libvirt import add_describe_parser
from vhost_user.program.list import add_list_parser
from vhost_user.program.run import run_device
from vhost_user.program.trace import add_trace_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROGRAM = "vhost-user"


def main(argv: Sequence[str] | None = None) -> int:
    """Run vhost-user with the command line `argv`; return its exit code."""
    prepare_standard_streams()
    options = _build_parser().parse_args(argv)
    try:
        code: int = options.run(options)
    except UserError as error:
        return fail(PROGRAM, error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def __getattr__(name: str) -> Callable[[], int]:
    """Return the program of one of our devices: vhost-user-NAME is this module's attribute NAME."""
    if name not in DEVICES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_run_ours, name)


def _run_ours(name: str, argv: Sequence[str] | None = None) -> int:
    prepare_standard_streams()
    return run_device(
        load_program(DEVICES[name]), sys.argv[1:] if argv is None else argv, f"{PROGRAM}-{name}"
    )


def _build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = OneLineParser(
        prog=PROGRAM, description="Virtio devices outside of QEMU's process (vhost-user)."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} (qemu-companion) {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_list_parser(commands)
    _add_run_parser(commands)
    add_control_parser(commands)
    add_describe_parser(commands)
    add_trace_parser(commands)
    return parser


def _add_run_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a device",
        description="Run a device; 'vhost-user run DEVICE --help' prints its options.",
    )
    parser.add_argument("device", metavar="DEVICE", help="a device that 'list' prints, or MODULE:CLASS")
    rest = parser.add_argument(
        "rest", metavar="OPTION", nargs=argparse.REMAINDER, help="the device's options"
    )
    rest.required = False  # or the error about a missing DEVICE names it, too
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if ":" in options.device:
        sys.path.insert(0, str(Path.cwd()))  # where people have their own, as with python -m
    return run_device(find(options.device), options.rest, f"{PROGRAM} run {options.device}")


if __name__ == "__main__":
    sys.exit(main())
