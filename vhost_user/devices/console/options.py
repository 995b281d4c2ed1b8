"""The options of vhost-user-console."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.virtio.console import CONFIG_SIZE, queues
from vhost_user.device_program import DeviceProgram
from vhost_user.device_program.qemu_args import generic_device
from vhost_user.devices.console.descriptions import HOSTS, parse_console, parse_port
from vhost_user.devices.console.device import DEFAULT_PORTS, Console

if TYPE_CHECKING:
    import argparse

    from vhost_user.devices.console.descriptions import PortDescription

TCP_PORT = 12345
"""The port of rust-vmm's vhost-device-console."""

MOST_PORTS = 127
"""A front-end can name 256 queues, of which the control messages have two and each port has two."""


class ConsoleProgram(DeviceProgram):
    """vhost-user-console."""

    device = Console

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add `--console` and `--port`."""
        add_options(parser)

    def make(self, options: argparse.Namespace) -> list[Console]:
        """Return the device that the command line describes, with its ports plugged in. Raises UserError."""
        made = self.device(max_ports(options), rows_first=options.rows_first)
        try:
            for number, port in described_ports(options).items():
                made.plug(number, port)
        except BaseException:
            made.close()
            raise
        return [made]

    def qemu_device(self, options: argparse.Namespace) -> str:
        """Return QEMU's device for any type, with the properties of this one."""
        return generic_device(self.device_id, queues(max_ports(options)), CONFIG_SIZE, options.without)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of vhost-user-console."""
    parser.add_argument(
        "--console",
        metavar="HOST",
        type=parsed_by(parse_console),
        action="append",
        default=[],
        help=f"add a text console, which on the host is {HOSTS}; may be given several times",
    )
    parser.add_argument(
        "--port",
        metavar="NAME=HOST",
        type=parsed_by(parse_port),
        action="append",
        default=[],
        help="add a port with a name, which on the host is any of these; may be given several times",
    )
    parser.add_argument(
        "--max-ports",
        metavar="N",
        type=whole_number(1, MOST_PORTS),
        help=f"room for N ports, also for later ones (default: as needed, at least {DEFAULT_PORTS})",
    )
    parser.add_argument(
        "--rows-first",
        action="store_true",
        help="send the size of consoles as older Linux reads it, rows before columns",
    )
    parser.add_argument(
        "-b",
        "--backend",
        choices=["nested", "network"],
        help="nested: the same as --console stdio, the default; network: as --console tcp:PORT",
    )
    parser.add_argument(
        "-p",
        "--tcp-port",
        metavar="PORT",
        type=whole_number(0, (1 << 16) - 1),
        default=TCP_PORT,
        help="the PORT of --backend network (default: %(default)s)",
    )


def described_ports(options: argparse.Namespace) -> dict[int, PortDescription]:
    """Return the ports by their numbers: consoles first; number 0 is reserved for a console."""
    consoles = list(options.console)
    if options.backend == "network":
        consoles.insert(0, parse_console(f"tcp:{options.tcp_port}"))
    elif options.backend == "nested" or not (consoles or options.port):
        consoles.insert(0, parse_console("stdio"))
    consoles = [replace(port, name=console_name(number)) for number, port in enumerate(consoles)]
    ports = dict(enumerate([*consoles, *options.port], start=0 if consoles else 1))
    names = [port.name for port in ports.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"there are two ports {twice.pop()}; give one of them another name")
    if [port.kind for port in ports.values()].count("stdio") > 1:
        raise UserError("only one port can be stdio; make the other a pty, or a UNIX socket")
    return ports


def max_ports(options: argparse.Namespace) -> int:
    """Return the number of ports to make room for. Raises UserError where --max-ports is too low."""
    needed = max(described_ports(options)) + 1
    if options.max_ports is None:
        return max(needed, DEFAULT_PORTS)
    if options.max_ports < needed:
        raise UserError(f"--max-ports {options.max_ports} is too few: give {needed} or more")
    return int(options.max_ports)


def console_name(number: int) -> str:
    """Return the name of the console that is the `number`-th on a command line, from 0."""
    return f"console{number or ''}"
