"""The options of vhost-user-vsock."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from protocol.virtio.vsock import Operation, VsockConfig
from tests.vhost_user.devices.vsock.driver import (
    PORT,
    guest_of,
    running,
)
from vhost_user.devices.vsock.host import UnixSockets
from vhost_user.devices.vsock.options import VsockProgram
from vhost_user.program.options import build_parser, parse_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from vhost_user.devices.vsock.device import Vsock


def options(*argv: str) -> argparse.Namespace:
    return build_parser(VsockProgram(), "vhost-user-vsock").parse_args(argv)


def test_options_have_the_names_and_defaults_of_rust_vmms() -> None:
    given = vars(
        options("--guest-cid", "7", "--uds-path", "/x", "--tx-buffer-size", "4096", "--groups", "a+b")
    )
    assert (given["guest_cid"], given["uds_path"], given["tx_buffer_size"]) == (7, "/x", 4096)
    assert given["groups"] == ("a", "b")
    default = options()
    assert (default.guest_cid, default.uds_path, default.tx_buffer_size) == (3, None, 65536)
    assert default.groups == ("default",)


def test_options_may_be_written_in_each_way_that_rust_vmms_are() -> None:
    assert parse_options(VsockProgram(), "vhost-user-vsock", ["--socket", "/tmp/x"]).socket_path == "/tmp/x"
    ways = ["guest_cid=7,socket=/x,uds_path=/y,tx_buffer_size=4096", "guest-cid=7,socket=/x,uds-path=/y"]
    one, other = options("--vm", ways[0], "--vm", f"{ways[1]},tx-buffer-size=4096").vm
    assert one == other == {"guest_cid": 7, "socket": "/x", "uds_path": "/y", "tx_buffer_size": 4096}


@pytest.fixture
def path(directory: Path) -> str:
    """The socket by which programs connect to the guest."""
    return str(directory / "vsock")


@pytest.fixture
def made(directory: Path) -> Iterator[list[Vsock]]:
    """Two devices of one command line."""
    argv = [
        *("--vm", f"guest-cid=3,socket={directory}/3.sock,uds-path={directory}/3.vsock,groups=a+b"),
        *("--vm", f"guest-cid=4,socket={directory}/4.sock,groups=b,tx-buffer-size=2048"),
    ]
    devices = VsockProgram().make(options(*argv, "--tx-buffer-size", "4096"))
    yield devices
    for device in devices:
        device.close()


async def test_one_program_serves_several_guests(made: list[Vsock]) -> None:
    first, second = made
    assert [VsockConfig.decode(device.config).guest_cid for device in made] == [3, 4]
    assert [sorted(device.groups) for device in made] == [["a", "b"], ["b"]]
    assert first.simulation is second.simulation
    assert set(first.simulation.parts) == {"3", "4"}
    async with running(*made), guest_of(first) as one, guest_of(second) as other:
        for guest, room in ((one, 4096), (other, 2048)):
            with (first if guest is one else second).listen(PORT):
                end = guest.port(1, PORT)
                await end.send(Operation.REQUEST)
                (header,) = await end.expect(Operation.RESPONSE)
                assert header.buf_alloc == room


def test_qemu_options_of_several_guests() -> None:
    given = options("--vm", "guest-cid=3,socket=/tmp/a", "--vm", "guest-cid=4,socket=/tmp/b")
    lines = VsockProgram().qemu_args(given).splitlines()
    assert [line.split("path=")[1] for line in lines] == [
        f"{path} -device vhost-user-vsock-pci,chardev=vsock0" for path in ("/tmp/a", "/tmp/b")
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--guest-cid", "2"), "'2' is not a number from 3 to 4294967294"),
        (("--guest-cid", "4294967295"), "'4294967295' is not a number from 3 to 4294967294"),
        (("--groups", "a++b"), r"'a\+\+b' is not a list of groups with '\+' between them"),
        (("--vm", "guest-cid=3"), "'guest-cid=3' does not say where QEMU connects"),
        (("--vm", "socket=/tmp/x,queue-size=3"), "'queue-size=3' is none of guest-cid=..., socket=..., "),
        (("--vm", "socket=/tmp/x,guest-cid=1"), "'1' is not a number from 3"),
        (("--vm", "socket="), "'socket=' is none of"),
    ],
)
def test_wrong_options(argv: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:

    with pytest.raises(SystemExit):
        options(*argv)
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_what_cannot_be_had_is_told_in_one_line(directory: Path, path: str) -> None:
    def refused(*argv: str) -> str:
        with pytest.raises(UserError) as caught:
            VsockProgram().make(options(*argv))
        return str(caught.value)

    assert refused("--socket-path", "/x") == (
        "guest 3 can reach neither a program of the host nor another guest;"
        " give --uds-path PATH, or further guests in a common group by --vm"
    )
    alone = refused("--vm", "guest-cid=3,socket=/x,groups=a", "--vm", "guest-cid=4,socket=/y,groups=b")
    assert alone.startswith("guest 3 can reach neither")
    assert "; give uds-path= in its --vm, or" in refused("--vm", "guest-cid=3,socket=/x")
    both = ("--vm", f"socket={path}1,uds-path={path}", "--vm", f"socket={path}2")
    assert refused(*both) == "two guests have the CID 3; give each its own (guest-cid=)"
    assert refused("--socket-path", "/x", *both[:2]).startswith("--vm says where each guest's sockets are")
    for one, other in ((f"socket={path}", f"socket={path}"), ("socket=/x,uds-path=/y", "socket=/y")):
        twice = refused("--vm", f"guest-cid=3,{one}", "--vm", f"guest-cid=4,{other}")
        assert twice == f"{other.partition('=')[2]} is given for two sockets; give each a path of its own"
    assert refused("--socket-path", path, "--uds-path", path).startswith(f"{path} is given for two sockets")
    assert refused("--uds-path", f"{directory}/none/x") == (
        f"cannot listen on {directory}/none/x: No such file or directory; create the directory first"
    )
    assert refused("--uds-path", "x" * 100).endswith(
        "_PORT would have more than 107 bytes; choose a shorter one"
    )
    sockets = UnixSockets(path, 1)
    in_use = refused("--uds-path", path)
    sockets.close()
    assert in_use == f"socket {path} is in use by another program; stop it or choose another path"
    (directory / "file").touch()
    assert "something that is not a socket is there" in refused("--uds-path", f"{directory}/file")
