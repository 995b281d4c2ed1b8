"""Descriptions of ports, from command lines and scripts: NAME=HOST[,OPTION=VALUE...]."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError
from protocol.program.socket_errors import cause_and_remedy
from vhost_user.devices.console.host import FileHost, PtyHost, TcpHost, UnixHost
from vhost_user.devices.console.port import BACKLOG
from vhost_user.devices.console.stdio import StdioHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.devices.console.port import HostSide

HOSTS = "pty, stdio, unix:PATH, tcp:[HOST:]PORT, file:PATH or none"
"""The host sides that a port may have."""

MAX_NAME = 200
"""Most bytes of a port's name: Linux's buffers for messages have 4096."""
MAX_BACKLOG = 1 << 30
LOCALHOST = "127.0.0.1"


_COMMA = re.compile(r"(?<!,),(?!,)")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True)
class PortDescription:
    """The description of a port."""

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
        """Open the host side; return None where it is "none". Raises UserError, which names the port."""
        try:
            return _OPENERS[self.kind](self)
        except OSError as error:
            where = f" {self.target}" if self.target else f" {self.link}" if self.link else ""
            raise UserError(f"port {self.name}: {self.kind}{where}: {_reason(self.kind, error)}") from None


def parse_port(text: str) -> PortDescription:
    """Return what NAME=HOST[,OPTION=VALUE...] says. Raises ValueError, which says what is wrong."""
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"'{text}' is not a port; write NAME=HOST, where HOST is {HOSTS}")
    return _parse(check_name(name), rest)


def parse_console(text: str, name: str = "console") -> PortDescription:
    """Return what HOST[,OPTION=VALUE...] says of a console. Raises ValueError."""
    return replace(_parse(check_name(name), text), is_console=True)


def check_name(name: str) -> str:
    """Return `name`, if a port may have it. Raises ValueError."""
    if not name or len(name.encode(errors="replace")) > MAX_NAME or not name.isprintable() or "/" in name:
        raise ValueError(
            f"'{name}' is not a name for a port: 1 to {MAX_NAME} bytes of what can be printed, no '/'"
        )
    return name


def _parse(name: str, text: str) -> PortDescription:
    host, *options = (part.replace(",,", ",") for part in _COMMA.split(text))
    kind, colon, target = host.partition(":")
    if kind not in _OPENERS or bool(target) != (kind in _WITH_TARGET) or bool(colon) != bool(target):
        raise ValueError(f"'{host}' is not a host side of a port; give {HOSTS}")
    if kind == "tcp":
        _address(target)
    port = PortDescription(name, kind, target)
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals:
            raise ValueError(
                f"'{option}' is not an option of a port; there are {', '.join(_OPTIONS)}, each with ="
            )
        port = _OPTIONS[key](port, value)
    return port


def _link(port: PortDescription, value: str) -> PortDescription:
    if port.kind != "pty" or not value:
        raise ValueError("link=PATH goes with pty alone")
    return replace(port, link=value)


def _size(port: PortDescription, value: str) -> PortDescription:
    match = _SIZE.fullmatch(value)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(0 < number < 1 << 16 for number in size):
        raise ValueError(f"'{value}' is not a size of a console; write COLUMNSxROWS, as in 80x25")
    return replace(port, size=size)


def _full(port: PortDescription, value: str) -> PortDescription:
    if value not in {"block", "drop"}:
        raise ValueError(f"full={value}: give block (the guest waits) or drop (the oldest bytes)")
    return replace(port, blocks=value == "block")


def _backlog(port: PortDescription, value: str) -> PortDescription:
    if not value.isdecimal() or not 0 < int(value) <= MAX_BACKLOG:
        raise ValueError(f"backlog={value}: give a number of bytes from 1 to {MAX_BACKLOG}")
    return replace(port, backlog=int(value))


_OPTIONS: dict[str, Callable[[PortDescription, str], PortDescription]] = {
    "link": _link,
    "size": _size,
    "full": _full,
    "backlog": _backlog,
}


def _address(target: str) -> tuple[str, int]:
    """Return host and port. Raises ValueError."""
    host, _, port = target.rpartition(":")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError(f"'{target}' is not a TCP port; write tcp:PORT or tcp:HOST:PORT")
    return host.strip("[]") or LOCALHOST, int(port)


_OPENERS: dict[str, Callable[[PortDescription], HostSide | None]] = {
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
