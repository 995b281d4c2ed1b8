"""docs/net.md is true: its commands, calls and its port of one's own."""

from __future__ import annotations

import re
import shlex

from trio.testing import wait_all_tasks_blocked

from tests.docs.documents import blocks, read, session
from tests.docs.test_vhost_user import rows
from tests.vhost_user.devices.net.driver import MERGING, begin, frame
from tests.vhost_user.devices.net.recording_port import TestPort
from tests.vhost_user.raw_frontend import attached
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.options import NetProgram
from vhost_user.program.options import build_parser

GUIDE = read("net.md")


def test_command_lines_are_right() -> None:
    parser = build_parser(NetProgram(), "vhost-user-net")
    commands = [command.text for command in session(GUIDE) if command.text.startswith("vhost-user-net ")]
    assert len(commands) >= 3
    for command in commands:
        parser.parse_args(shlex.split(command)[1:])


def test_qemus_command_line_is_what_is_printed() -> None:
    """But for names: the device's own part of it."""
    (shown,) = (command.text for command in session(GUIDE) if command.text.startswith("qemu-system-x86_64"))
    parser = build_parser(NetProgram(), "vhost-user-net")
    argv = ["--socket-path", "/tmp/net.sock", "--tap", "tap0", "--mac", "52:54:00:12:34:56"]
    options = parser.parse_args(argv)
    options.number = 0
    printed = NetProgram().qemu_attachment(options, "net0", "")
    assert printed in re.sub(" +", " ", shown)


def test_calls_are_those_that_there_are() -> None:
    with Net(TestPort()) as device:
        called = {cells[0].strip("`").partition("(")[0] for cells in rows("`--control PATH`", renamed())}
        assert called == set(device.net.calls())


def renamed() -> str:
    """Return the guide with the table of calls below a line that `rows()` finds."""
    before, after = GUIDE.split("\n| call |")
    return f"{before}\n`--control PATH`\n\n| call |{after}"


async def test_port_of_ones_own_gives_frames_back() -> None:
    (code,) = blocks(GUIDE, "python")
    names: dict[str, object] = {}
    exec(code, names)  # noqa: S102 -- what the guide says
    device = Net(names["Loopback"]())  # type: ignore[operator]
    async with attached(device) as front:
        rx, tx = await begin(front, MERGING, 0, 1)
        rx.submit([], [2000])
        await wait_all_tasks_blocked()
        await tx.exchange([frame(100)], [])
        ((got,),) = await rx.wait()
        assert got[12:] == frame(100)[12:]
