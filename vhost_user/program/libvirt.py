"""`vhost-user describe`: the files by which libvirt finds our back-end programs."""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, print_result
from vhost_user.devices import DEVICES
from vhost_user.program.installed import load_program
from vhost_user.program.run import backend_type

if TYPE_CHECKING:
    from vhost_user.device_program import DeviceProgram

PROGRAM = "vhost-user describe"

KNOWN_TYPES = frozenset(
    {
        *("9p", "balloon", "block", "caif", "console", "crypto", "fs", "gpu", "input", "net", "rng"),
        *("rpmsg", "rproc-serial", "scsi", "vsock"),
    }
)
"""The types of QEMU's docs/interop/vhost-user.json. With a file of any other type, libvirt refuses all files,
and with them every guest with virtiofs or vhost-user-gpu. So i2c has none; libvirt has no use for one."""

_DESCRIPTION = """\
Write the files by which management software such as libvirt finds these back-ends, one for each device
that has a program of its own, with the place where that program is installed. libvirt looks for them in
/etc/qemu/vhost-user and /usr/share/qemu/vhost-user, and for a user's own guests in
~/.config/qemu/vhost-user.
"""


def add_describe_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `describe`; its options hold `run_describe` as `run`."""
    parser = subparsers.add_parser(
        "describe",
        help="write the files by which libvirt finds the devices",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory", metavar="DIRECTORY", help="the directory to write them to; made if it is missing"
    )
    parser.set_defaults(run=run_describe)


def described_devices() -> dict[str, DeviceProgram]:
    """Return those of our devices that have a file, by their names."""
    ours = {name: load_program(where) for name, where in DEVICES.items()}
    return {name: own for name, own in ours.items() if backend_type(own.device_id) in KNOWN_TYPES}


def description(program: DeviceProgram, binary: str) -> str:
    """Return a description file, as QEMU's docs/interop/vhost-user.json has it."""
    kind = backend_type(program.device_id)
    content = {"description": program.summary, "type": kind, "binary": binary}
    return json.dumps(content, indent=2) + "\n"


def run_describe(options: argparse.Namespace) -> int:
    """Write the files, and print what was written; return the exit code. Raises UserError."""
    directory = Path(options.directory)
    written = []
    for name, program in described_devices().items():
        path = directory / f"50-qemu-companion-{name}.json"
        text = description(program, str(_program(f"vhost-user-{name}")))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another directory") from None
        written.append(str(path))
    return print_result(PROGRAM, "\n".join(written))


def _program(name: str) -> Path:
    """Return the path of a program of this package: next to the one that runs. Raises UserError."""
    for directory in (Path(sys.argv[0]).absolute().parent, Path(sysconfig.get_path("scripts"))):
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"there is no {name} next to {sys.argv[0]}; install the package with pip")
