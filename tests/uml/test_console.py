"""Our consoles and ports in User Mode Linux: a login, sizes, data, ends of all kinds."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import socket
import struct
import termios
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.guest.guest import CommandError
from tests.rig.programs.backend import start_backend, until_printed
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import Any

    from tests.rig.programs.backend import RunningBackend
    from vhost_user.simulation.control_client import ControlClient

pytestmark = pytest.mark.uml

MIB = 1 << 20
DATA = random.Random(1).randbytes(4 * MIB)
SECONDS = 60
PORT = "/dev/vport0p1"


ECHO = f"while :; do while read -r line; do echo $line too; done; usleep 10000; done <>{PORT} >&0"
"""Answers each line, also of the next client: while there is none, a read finds an end of file."""

TAKE_ALL = (
    f"exec 3<{PORT}; until [ -s /tmp/got ]; do usleep 10000; cat <&3 >>/tmp/got; done; sha256sum /tmp/got"
)
"""Takes what comes until the other end is closed, and is not discouraged by one that is not open yet."""

TAKE = "exec 3<$PORT; until read -r line <&3; do usleep 10000; done; echo $line; cat <&3"
"""Prints a line, and then what comes until the port is gone."""

LOGIN = """
echo root::0:0:root:/:/bin/sh >/etc/passwd
printf '#!/bin/sh\\nexec login -p "$@"' >/tmp/login
chmod 755 /tmp/login
hostname uml
setsid getty -L -l /tmp/login 0 hvc0 vt100 >/dev/null 2>&1 &
"""
"""-p, as this kernel's programs learn from their environment what of the CPU they may use (rig/uml.py)."""


@asynccontextmanager
async def backend(directory: Path, *options: str) -> AsyncIterator[tuple[RunningBackend, ControlClient]]:
    """Run the device with a control socket; yield it and a client of that."""
    control = directory / "control"
    async with (
        start_backend(directory, "console", *uml.SUITED, "--control", str(control), *options) as running,
        control_client.connect(control) as client,
    ):
        with trio.fail_after(2 * SECONDS):
            yield running, client


def boot(directory: Path, running: RunningBackend) -> AbstractAsyncContextManager[uml.Guest]:
    """Boot a guest with the device."""
    return uml.boot(directory, uml.device(running.socket, DeviceId.CONSOLE))


def connect(path: Path) -> trio.SocketStream:
    """Connect to a port's socket, as a program on the host does."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(client))


async def receive(client: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        came = await client.receive_some(size - len(data))
        assert came
        data += came
    return bytes(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def until_status(control: ControlClient, holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until what the device says of the port `agent` is so."""
    with trio.fail_after(SECONDS):
        while not holds(await control.call("status", on="agent")):  # noqa: ASYNC110 -- in another process
            await trio.sleep(0.01)


class Screen:
    """Somebody who has opened a pseudo-terminal of the host."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._shown = ""

    async def expect(self, pattern: str) -> re.Match[str]:
        """Wait until this is shown; forget what is before its end."""
        with trio.fail_after(SECONDS):
            while not (match := re.search(pattern, self._shown)):
                await trio.lowlevel.wait_readable(self._fd)
                self._shown += os.read(self._fd, 4096).decode()
        self._shown = self._shown[match.end() :]
        return match

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


async def test_login_on_one_console_and_a_shell_on_another(directory: Path) -> None:
    tty, second = directory / "tty", directory / "second"
    options = ("--console", f"pty,link={tty},size=100x30,backlog=1000", "--console", f"unix:{second}")
    async with backend(directory, *options) as (running, control), boot(directory, running) as guest:
        names = await guest.sh("cd /sys/class/virtio-ports; for p in *; do echo $p $(cat $p/name); done")
        assert names.splitlines() == ["vport0p0 console", "vport0p1 console1"]
        await guest.sh(LOGIN)
        with Screen(tty) as screen:
            await screen.expect("uml login: ")
            screen.type("root\r")
            await screen.expect("# ")
            screen.type("stty size; tty\r")
            assert (await screen.expect(r"(\d+ \d+)\r\n(/dev/\w+)\r\n")).groups() == ("30 100", "/dev/hvc0")
            screen.resize(132, 43)
            await until_size_is(guest, "hvc0", "43 132")

        await guest.sh("setsid getty -n -l /bin/sh -L 0 hvc1 vt100 >/dev/null 2>&1 &")
        await control.call("expect", on="console1", text="# ")
        async with connect(second) as client:
            await client.send_all(b"echo $((6 * 7)) from $(tty)\n")
            await control.call("expect", on="console1", text="42 from /dev/hvc1")
        await control.call("resize", on="console1", columns=40, rows=12)
        await until_size_is(guest, "hvc1", "12 40")

        # Nobody reads: the guest's kernel does not stand still for that, and the newest lines are kept.
        await guest.sh("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done >/dev/hvc0")
        assert (await control.call("status", on="console"))["dropped"] > 0
        with Screen(tty) as screen:
            await screen.expect(r"line 299\r\nline 300\r\n")
            screen.type("echo still $((1 + 1))here\r")
            await screen.expect("still 2here")


async def until_size_is(guest: uml.Guest, terminal: str, size: str) -> None:
    """Wait until the guest knows rows and columns of a console."""
    with trio.fail_after(SECONDS):
        while await guest.sh(f"stty size -F /dev/{terminal}") != size:  # noqa: ASYNC110 -- in the guest
            await trio.sleep(0.01)


async def test_data_through_a_port_in_both_directions(directory: Path) -> None:
    agent = directory / "agent"
    async with (
        backend(directory, "--port", f"agent=unix:{agent}") as (running, control),
        boot(directory, running) as guest,
    ):
        assert await guest.sh(f"cat /sys/class/virtio-ports/vport0p1/name; ls {PORT}") == f"agent\n{PORT}"

        # To the guest: its program sees the end of the client after the last byte.
        reading = await guest.start(TAKE_ALL)
        async with connect(agent) as client:
            await client.send_all(DATA)
        assert (await reading.finish()).split()[0] == digest(DATA)

        # From the guest, to somebody who reads nothing for a while: more than what the queue, we and the
        # kernel have room for.
        await guest.sh(f"head -c {6 * MIB} /dev/urandom >/tmp/data")
        await guest.sh(f"(dd if=/tmp/data of={PORT} bs=4k && echo done >/tmp/done) >/dev/null 2>&1 &")
        async with connect(agent) as client:
            await until_status(control, lambda status: status["for_host"] >= 65536)
            assert await guest.sh("cat /tmp/done 2>/dev/null || echo it waits") == "it waits"
            came = await receive(client, 6 * MIB)
        assert (await guest.sh("sha256sum /tmp/data")).split()[0] == digest(came)
        await guest.sh("until [ -e /tmp/done ]; do usleep 10000; done")

        # Client after client, and each sees its own conversation.
        await guest.sh(f"({ECHO}) 2>/dev/null &")
        for number in range(3):
            await until_status(control, lambda status: not status["host_open"])
            async with connect(agent) as client:
                await client.send_all(b"hello %d\n" % number)
                assert await receive(client, 12) == b"hello %d too\n" % number


async def test_ports_come_and_go_and_guests_are_killed(directory: Path) -> None:
    async with backend(directory, "--port", "agent=none") as (running, control):
        for number in range(1, 3):
            async with boot(directory, running) as guest:
                await control.call("add_port", name="hot", host=f"pty,link={directory}/hot")
                await guest.sh("until [ -e /sys/class/virtio-ports/vport0p2/name ]; do usleep 10000; done")
                assert await guest.sh("cat /sys/class/virtio-ports/vport0p2/name") == "hot"
                with Screen(directory / "hot") as screen:
                    reading = await guest.start(f"PORT=/dev/vport0p2; {TAKE}")
                    screen.type("typed\n")
                    assert await reading.line() == "typed"
                    await control.call("remove_port", name="hot")
                    with pytest.raises(CommandError, match="No such device"):
                        await reading.finish()
                assert not (directory / "hot").is_symlink()
                await guest.sh("until [ ! -e /dev/vport0p2 ]; do usleep 10000; done")
                await guest.sh(f"(cat /dev/urandom >{PORT}) 2>/dev/null &")
                await until_status(control, lambda status: status["for_host"] >= 65536)
                await guest.kill()
            await until_printed(running.program, "the front-end has left", number)
            assert (await control.call("status", on="agent"))["guest_open"] is False
            while await control.call("read_bytes", on="agent"):
                pass
