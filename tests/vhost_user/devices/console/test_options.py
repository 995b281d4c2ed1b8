"""The command line of the console device, and what it makes of it."""

from __future__ import annotations

import argparse
import re
import socket
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from vhost_user.devices.console.descriptions import MAX_NAME, PortDescription, parse_console, parse_port
from vhost_user.devices.console.device import DEFAULT_PORTS
from vhost_user.devices.console.options import ConsoleProgram, described_ports, max_ports

if TYPE_CHECKING:
    from pathlib import Path


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.set_defaults(without=[])
    ConsoleProgram().add_options(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("a=pty", PortDescription("a", "pty")),
        ("a=pty,link=/tmp/a,,b", PortDescription("a", "pty", link="/tmp/a,b")),
        ("org.example.agent=unix:/tmp/a=b", PortDescription("org.example.agent", "unix", "/tmp/a=b")),
        (
            "a=unix:/tmp/a,,b,full=drop,backlog=10",
            PortDescription("a", "unix", "/tmp/a,b", blocks=False, backlog=10),
        ),
        ("a=tcp:12345", PortDescription("a", "tcp", "12345")),
        ("a=tcp:[::1]:12345", PortDescription("a", "tcp", "[::1]:12345")),
        ("a=file:/tmp/log,full=block", PortDescription("a", "file", "/tmp/log", blocks=True)),
        ("a=none,size=80x25", PortDescription("a", size=(80, 25))),
        ("a=stdio", PortDescription("a", "stdio")),
    ],
)
def test_port(text: str, port: PortDescription) -> None:
    assert parse_port(text) == port


def test_console_is_named_and_is_one() -> None:
    assert parse_console("pty") == PortDescription("console", "pty", is_console=True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("agent", "'agent' is not a port; write NAME=HOST, where HOST is pty, stdio, unix:PATH"),
        ("=pty", "'' is not a name for a port"),
        ("a/b=pty", "'a/b' is not a name for a port"),
        ("a\n=pty", "is not a name for a port: 1 to 200 bytes of what can be printed"),
        ("x" * (MAX_NAME + 1) + "=pty", "is not a name for a port"),
        ("a=", "'' is not a host side of a port; give pty, stdio"),
        ("a=serial", "'serial' is not a host side of a port"),
        ("a=unix", "'unix' is not a host side of a port"),
        ("a=unix:", "'unix:' is not a host side of a port"),
        ("a=pty:/dev/pts/1", "'pty:/dev/pts/1' is not a host side of a port"),
        ("a=tcp:host:http", "'host:http' is not a TCP port; write tcp:PORT or tcp:HOST:PORT"),
        ("a=tcp:65536", "'65536' is not a TCP port"),
        (
            "a=pty,lnk=a",
            "'lnk=a' is not an option of a port; there are link, size, full, backlog, each with =",
        ),
        ("a=pty,link", "'link' is not an option of a port"),
        ("a=none,link=b", "link=PATH goes with pty alone"),
        ("a=pty,size=80", "'80' is not a size of a console; write COLUMNSxROWS, as in 80x25"),
        ("a=pty,size=0x25", "'0x25' is not a size of a console"),
        ("a=pty,full=wait", "full=wait: give block"),
        ("a=pty,backlog=0", "backlog=0: give a number of bytes from 1"),
    ],
)
def test_port_that_is_wrong_says_why(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=re.escape(what)):
        parse_port(text)


def numbers(*argv: str) -> dict[int, str]:
    return {number: f"{port.name}={port.kind}" for number, port in described_ports(options(*argv)).items()}


def test_consoles_come_first_and_ports_are_never_number_0() -> None:
    assert numbers("--port", "a=pty", "--console", "pty", "--port", "b=pty") == {
        0: "console=pty",
        1: "a=pty",
        2: "b=pty",
    }
    assert numbers("--port", "a=pty") == {1: "a=pty"}
    assert numbers("--console", "pty", "--console", "none", "--port", "a=pty") == {
        0: "console=pty",
        1: "console1=none",
        2: "a=pty",
    }


def test_backends_of_rust_vmms() -> None:
    assert numbers() == numbers("--backend", "nested") == numbers("-b", "nested") == {0: "console=stdio"}
    assert described_ports(options("-b", "network"))[0].target == "12345"
    assert described_ports(options("--backend", "network", "--tcp-port", "4711"))[0].target == "4711"
    assert numbers("-b", "network", "--console", "pty") == {0: "console=tcp", 1: "console1=pty"}


def test_there_is_room_for_more_ports() -> None:
    assert max_ports(options("--console", "pty")) == DEFAULT_PORTS
    many = [argument for number in range(20) for argument in ("--port", f"port{number}=none")]
    assert max_ports(options(*many)) == 21
    assert max_ports(options("--console", "pty", "--max-ports", "1")) == 1
    with pytest.raises(UserError, match="--max-ports 1 is too few: give 2 or more"):
        max_ports(options("--console", "pty", "--port", "a=pty", "--max-ports", "1"))


def test_qemu_is_told_how_many_queues_there_are() -> None:
    assert ConsoleProgram().qemu_device(options("--console", "pty", "--max-ports", "3")) == (
        "vhost-user-test-device-pci,virtio-id=3,num_vqs=8,config_size=12"
    )


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--port", "a=none", "--port", "a=pty"], "there are two ports a; give one of them another name"),
        (["--console", "pty", "--port", "console=pty"], "there are two ports console"),
        (["--console", "stdio", "--port", "a=stdio"], "only one port can be stdio"),
        (
            ["--port", "a=unix:/none/a"],
            "port a: unix /none/a: No such file or directory; create the directory first",
        ),
        (
            ["--port", "a=file:/none/a"],
            "port a: file /none/a: No such file or directory; choose another file",
        ),
        (
            ["--port", "a=pty,link=/none/a"],
            "port a: pty /none/a: No such file or directory; choose another link",
        ),
        (["--port", "a=tcp:192.0.2.1:1"], "tcp 192.0.2.1:1: Cannot assign requested address; choose another"),
        (
            ["--port", "a=tcp:no host:1"],
            "port a: tcp no host:1: Name or service not known; choose another port",
        ),
        (["--port", f"a=tcp:{'ä' * 70}:1"], "no host can have this name; choose another port"),
    ],
)
def test_what_cannot_be_had_is_named(argv: list[str], what: str) -> None:
    with pytest.raises(UserError) as error:
        ConsoleProgram().make(options(*argv))
    assert what in str(error.value)


def test_nothing_is_left_where_one_port_cannot_be_had(directory: Path) -> None:
    path, link = directory / "socket", directory / "link"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv = ["--port", f"a=unix:{path}", "--port", f"b=pty,link={link}", "--port", f"c=tcp:{port}"]
        with pytest.raises(
            UserError, match=f"port c: tcp {port}: Address already in use; choose another port"
        ):
            ConsoleProgram().make(options(*argv))
    assert not path.exists()
    assert not link.is_symlink()


def test_ports_are_gone_when_the_device_is_closed(directory: Path) -> None:
    path, link = directory / "socket", directory / "link"
    argv = ["--console", f"pty,link={link}", "--port", f"a=unix:{path}", "--port", f"b=file:{directory}/log"]
    with ConsoleProgram().make(options(*argv))[0] as console:
        assert link.is_char_device()
        assert path.is_socket()
        assert list(console.ports) == ["console", "a", "b"]
    assert [entry.name for entry in directory.iterdir()] == ["log"]
