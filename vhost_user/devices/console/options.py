"""The options of vhost-user-console, and how a port is described: NAME=HOST[,OPTION=VALUE...]."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError, parsed_by, whole_number
from protocol.program.socket_errors import cause_and_remedy
from vhost_user.devices.console.host import FileHost, PtyHost, TcpHost, UnixHost
from vhost_user.devices.console.port import BACKLOG
from vhost_user.devices.console.stdio import StdioHost

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from vhost_user.devices.console.host import HostSide

HOSTS = "pty, stdio, unix:PATH, tcp:[HOST:]PORT, file:PATH or none"
"""What a port may be on the host."""

MAX_NAME = 200
"""Most bytes of a port's name: Linux's buffers for messages have 4096."""
MAX_BACKLOG = 1 << 30
LOCALHOST = "127.0.0.1"
TCP_PORT = 12345
"""Where rust-vmm's vhost-device-console listens."""

MOST_PORTS = 127
"""A front-end can name 256 queues, of which the control messages have two and each port has two."""
DEFAULT_PORTS = 8
"""How many ports there may be, where nobody says otherwise."""

_COMMA = re.compile(r"(?<!,),(?!,)")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class PortOptions:
    """What a port is to be."""

    name: str
    kind: str = "none"
    target: str = ""
    """The path, or for tcp host and port."""
    is_console: bool = False
    link: str | None = None
    size: tuple[int, int] | None = None
    blocks: bool | None = None
    backlog: int = BACKLOG

    def open(self) -> HostSide | None:
        """Open what it is on the host; None: nothing. Raises UserError, which names it."""
        try:
            return _OPENERS[self.kind](self)
        except OSError as error:
            where = f" {self.target}" if self.target else f" {self.link}" if self.link else ""
            raise UserError(f"port {self.name}: {self.kind}{where}: {_reason(self.kind, error)}") from None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a command line."""
    parser.add_argument(
        "--console",
        metavar="HOST",
        type=parsed_by(parse_console),
        action="append",
        default=[],
        help=f"a text console, and what it is on the host: {HOSTS}; may be given several times",
    )
    parser.add_argument(
        "--port",
        metavar="NAME=HOST",
        type=parsed_by(parse_port),
        action="append",
        default=[],
        help="a port with a name, and what it is on the host; may be given several times",
    )
    parser.add_argument(
        "--max-ports",
        metavar="N",
        type=whole_number(1, MOST_PORTS),
        help=f"ports that there may be, also later (default: as needed, at least {DEFAULT_PORTS})",
    )
    parser.add_argument(
        "--rows-first",
        action="store_true",
        help="tell the size of consoles as older Linux takes it, rows before columns",
    )
    parser.add_argument(
        "-b",
        "--backend",
        choices=["nested", "network"],
        help="the same as --console stdio, which is what there is by default, or --console tcp:PORT",
    )
    parser.add_argument(
        "-p",
        "--tcp-port",
        metavar="PORT",
        type=whole_number(0, (1 << 16) - 1),
        default=TCP_PORT,
        help="the PORT of --backend network (default: %(default)s)",
    )


def described_ports(options: argparse.Namespace) -> dict[int, PortOptions]:
    """Return the ports by their numbers: consoles first, and 0 for none but a console."""
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
    """Return how many ports there may be. Raises UserError where that is too few."""
    needed = max(described_ports(options)) + 1
    if options.max_ports is None:
        return max(needed, DEFAULT_PORTS)
    if options.max_ports < needed:
        raise UserError(f"--max-ports {options.max_ports} is too few: give {needed} or more")
    return int(options.max_ports)


def console_name(number: int) -> str:
    """Return the name of the console that is the `number`-th on a command line, from 0."""
    return f"console{number or ''}"


def parse_port(text: str) -> PortOptions:
    """Return what NAME=HOST[,OPTION=VALUE...] says. Raises ValueError, which says what is wrong."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"'{text}' is no port; write NAME=HOST, where HOST is {HOSTS}")
    return _parse(check_name(name), rest)


def parse_console(text: str, name: str = "console") -> PortOptions:
    """Return what HOST[,OPTION=VALUE...] says of a console. Raises ValueError."""
    return replace(_parse(check_name(name), text), is_console=True)


def check_name(name: str) -> str:
    """Return `name`, if a port may have it. Raises ValueError."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME or not name.isprintable() or "/" in name:
        raise ValueError(
            f"'{name}' is no name of a port: 1 to {MAX_NAME} bytes of what can be printed, no '/'"
        )
    return name


def _parse(name: str, text: str) -> PortOptions:
    host, *options = (part.replace(",,", ",") for part in _COMMA.split(text))
    kind, colon, target = host.partition(":")
    if kind not in _OPENERS or bool(target) != (kind in _WITH_TARGET) or bool(colon) != bool(target):
        raise ValueError(f"'{host}' is nothing that a port can be on the host; give {HOSTS}")
    if kind == "tcp":
        _address(target)
    port = PortOptions(name, kind, target)
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals:
            raise ValueError(
                f"'{option}' is no option of a port; there are {', '.join(_OPTIONS)}, each with ="
            )
        port = _OPTIONS[key](port, value)
    return port


def _link(port: PortOptions, value: str) -> PortOptions:
    if port.kind != "pty" or not value:
        raise ValueError("link=PATH goes with pty alone")
    return replace(port, link=value)


def _size(port: PortOptions, value: str) -> PortOptions:
    match = _SIZE.fullmatch(value)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(0 < number < 1 << 16 for number in size):
        raise ValueError(f"'{value}' is no size of a console; write COLUMNSxROWS, as in 80x25")
    return replace(port, size=size)


def _full(port: PortOptions, value: str) -> PortOptions:
    if value not in {"block", "drop"}:
        raise ValueError(f"full={value}: give block (the guest waits) or drop (the oldest bytes)")
    return replace(port, blocks=value == "block")


def _backlog(port: PortOptions, value: str) -> PortOptions:
    if not value.isdecimal() or not 0 < int(value) <= MAX_BACKLOG:
        raise ValueError(f"backlog={value}: give a number of bytes from 1 to {MAX_BACKLOG}")
    return replace(port, backlog=int(value))


_OPTIONS: dict[str, Callable[[PortOptions, str], PortOptions]] = {
    "link": _link,
    "size": _size,
    "full": _full,
    "backlog": _backlog,
}


def _address(target: str) -> tuple[str, int]:
    """Return host and port. Raises ValueError."""
    host, _, port = target.rpartition(":")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError(f"'{target}' is no TCP port; write tcp:PORT or tcp:HOST:PORT")
    return host.strip("[]") or LOCALHOST, int(port)


_OPENERS: dict[str, Callable[[PortOptions], HostSide | None]] = {
    "none": lambda _: None,
    "pty": lambda port: PtyHost(port.link),
    "stdio": lambda _: StdioHost(),
    "unix": lambda port: UnixHost(port.target),
    "tcp": lambda port: TcpHost(*_address(port.target)),
    "file": lambda port: FileHost(port.target),
}
_WITH_TARGET = {"unix", "tcp", "file"}


def _reason(kind: str, error: OSError) -> str:
    """Return cause and remedy."""
    if kind == "unix":
        return cause_and_remedy(error)
    remedies = {
        "tcp": "; choose another port",
        "file": "; choose another file",
        "pty": "; choose another link",
    }
    cause = str(error.strerror).partition(" (while")[0]  # where create_server() repeats the address
    return f"{cause}{remedies.get(kind, '')}"
