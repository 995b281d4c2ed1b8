"""What any guest does with its sockets: gigabytes, connections, their ends.

The guest runs src/vsock-load.c, and so does the host as the other end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import struct
import tempfile
import termios
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.rig.debian import cache
from tests.rig.debian.apt import run
from tests.rig.programs import process
from tests.rig.programs.backend import until_printed
from vhost_user.simulation import control_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.rig.guest.guest import Shell

_SOURCE = Path(__file__).parents[1] / "guest/src/vsock-load.c"
#: How many MiB each way are sent, where that is not left to the test.
SIZE_VARIABLE = "QEMU_COMPANION_VSOCK_MIB"
_SECONDS = 1200
_TAKEN_SECONDS = 0.01
"""How long a record may wait for its turn, before it is sent with the next one: the guest has no room."""
_PORTS = iter(range(5000, 60000))


def mebibytes(usual: int) -> int:
    """Return how many MiB to send each way: `usual`, unless SIZE_VARIABLE says otherwise."""
    return int(os.environ.get(SIZE_VARIABLE) or usual)


def program() -> Path:
    """Return vsock-load for the host; compile it first if it is new. Raises SetupError."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    path = cache.directory() / f"vsock-load-{digest}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache.directory()) as scratch:
            built = Path(scratch, path.name)
            run(
                ["gcc", "-O2", "-o", str(built), str(_SOURCE)], purpose="compiling vsock-load (gcc is needed)"
            )
            built.rename(path)
    return path


@dataclass
class Load:
    """A run of vsock-load on the host; its `output` is there when it has ended."""

    output: str = ""


class Host:
    """The host's programs: `path` is the --uds-path of the guest's device."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @asynccontextmanager
    async def load(self, *arguments: object) -> AsyncIterator[Load]:
        """Run vsock-load for the length of the block, at whose end it has to end with code 0."""
        async with process.start([str(program()), *map(str, arguments)]) as started:
            if arguments[0] == "listen":
                await until_printed(started, "listening\n")
            yield (load := Load())
            with trio.fail_after(_SECONDS):
                assert await started.wait() == 0, started.output()
            load.output = started.output()

    def at(self, port: int) -> Path:
        """Return where the host listens for the guest at `port`."""
        return self.path.with_name(f"{self.path.name}_{port}")

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[trio.SocketListener]:
        """Listen for the guest in this process."""
        path = str(self.at(port))
        with trio.socket.socket(socket.AF_UNIX) as sock:
            await sock.bind(path)
            sock.listen(1)
            yield trio.SocketListener(sock)


def _flow(output: str, what: str) -> str:
    """Return bytes and checksum that vsock-load printed of one direction."""
    (flow,) = re.findall(rf"^{what} (\d+ [0-9a-f]{{16}})$", output, re.MULTILINE)
    return str(flow)


async def transfer(guest: Shell, host: Host, size: int) -> None:
    """Send `size` bytes to the guest on one connection, from it on another, and both ways on a third."""
    port = next(_PORTS)
    async with host.load("listen", "unix", host.at(port), "receive") as load:
        told = await guest.sh(f"vsock-load connect vsock 2 {port} send {size} 7", seconds=_SECONDS)
    assert _flow(told, "sent") == _flow(load.output, "received")
    assert _flow(told, "sent").startswith(f"{size} ")

    listening = await guest.start(f"vsock-load listen vsock {port} receive")
    assert await listening.line() == "listening"
    async with host.load("connect", "guest", host.path, port, "send", size, 9) as load:
        told = await listening.finish()
    assert _flow(load.output, "sent") == _flow(told, "received")
    assert _flow(told, "received").startswith(f"{size} ")

    async with host.load("listen", "unix", host.at(port + 10_000), "both", size // 8, 11) as load:
        command = f"vsock-load connect vsock 2 {port + 10_000} both {size // 8} 13"
        told = await guest.sh(command, seconds=_SECONDS)
    assert _flow(told, "sent") == _flow(load.output, "received")
    assert _flow(load.output, "sent") == _flow(told, "received")


async def connections(guest: Shell, host: Host, count: int, at_once: int) -> None:
    """Make `count` connections each way, `at_once` at a time; on each, bytes go to and fro."""
    port = next(_PORTS)
    async with host.load("listen", "unix", host.at(port), "echo", count, at_once) as load:
        told = await guest.sh(f"vsock-load connect vsock 2 {port} many {count} {at_once}", seconds=_SECONDS)
    assert told == f"connected {count}"
    assert load.output.splitlines()[-1] == f"echoed {count}"
    listening = await guest.start(f"vsock-load listen vsock {port} echo {count} {at_once}")
    assert await listening.line() == "listening"
    async with host.load("connect", "guest", host.path, port, "many", count, at_once) as load:
        told = await listening.finish()
    assert load.output == f"connected {count}\n"
    assert told == f"echoed {count}"


async def records(guest: Shell, host: Host, count: int, size: int) -> None:
    """Send so many small records, each by itself, while the guest reads nothing, and let it read then.

    Some kernels reset a connection where the packets that wait cost them more than the room for bytes.
    """
    port = next(_PORTS)
    load = f"vsock-load connect vsock 2 {port} both 1 7"
    waits = "pid=$!; read go <&3; kill -STOP $pid; echo; read go <&3; kill -CONT $pid; wait $pid"
    async with host.listening(port) as listener:
        reading = await guest.start(f"{load} & {waits}")
        async with await listener.accept() as stream, trio.open_nursery() as nursery:
            assert await stream.receive_some(1)  # else the signal interrupts connect()
            await reading.tell("stop")
            await reading.line()
            await nursery.start(_send_records, stream, count, size)
            await reading.tell("go on")
            told = await reading.finish()
    assert _flow(told, "received").startswith(f"{count * size} ")


async def _send_records(
    stream: trio.SocketStream, count: int, size: int, *, task_status: trio.TaskStatus[None]
) -> None:
    """Send records, each when the one before was taken; tell when one has to wait for room in the guest."""
    told = False
    for number in range(count):
        await stream.send_all(number.to_bytes(4, "little") * (size // 4))
        with trio.move_on_after(_TAKEN_SECONDS) as scope:
            await _until_taken(stream)
        if not told and scope.cancelled_caught:
            told = True
            task_status.started()
    await stream.send_eof()


async def _until_taken(stream: trio.SocketStream) -> None:
    """Wait until the device has read all that was sent to it."""
    while struct.unpack("i", fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
        await trio.lowlevel.checkpoint()


async def _read_to_the_end(stream: trio.SocketStream) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data


async def _guest_closes(stream: trio.SocketStream) -> None:
    assert await _read_to_the_end(stream) == bytes(5)


async def _host_closes(stream: trio.SocketStream) -> None:
    await stream.send_all(bytes(5))


async def _guest_ends_first(stream: trio.SocketStream) -> None:
    assert await _read_to_the_end(stream) == bytes(5)
    await stream.send_all(bytes(6))


async def _host_ends_first(stream: trio.SocketStream) -> None:
    await stream.send_all(bytes(5))
    await stream.send_eof()
    assert await _read_to_the_end(stream) == bytes(6)


async def _guest_receives_no_more(stream: trio.SocketStream) -> None:
    assert await stream.receive_some(5) == bytes(5)
    try:
        await stream.send_all(bytes(1 << 24))
    except trio.BrokenResourceError:
        return
    raise AssertionError("the host can send what the guest does not receive")


async def _host_receives_no_more(stream: trio.SocketStream) -> None:
    stream.socket.shutdown(socket.SHUT_RD)
    await stream.send_all(bytes(5))


async def _host_leaves_bytes_unread(stream: trio.SocketStream) -> None:
    assert await stream.receive_some(1) == bytes(1)


ENDS: dict[str, tuple[str, Callable[[trio.SocketStream], Awaitable[None]], str]] = {
    "guest closes": ("w5 c", _guest_closes, "w5=5 c=0"),
    "guest exits": ("w5", _guest_closes, "w5=5"),
    "guest shuts both down": ("w5 B e c", _guest_closes, "w5=5 B=0 e=0 c=0"),
    "host closes": ("r5 e F c", _host_closes, "r5=5 e=0 F=EPIPE c=0"),
    "guest ends first": ("w5 W r6 e c", _guest_ends_first, "w5=5 W=0 r6=6 e=0 c=0"),
    "guest ends first and writes": ("w5 W F r6 e c", _guest_ends_first, "w5=5 W=0 F=EPIPE r6=6 e=0 c=0"),
    "host ends first": ("r5 e w6 c", _host_ends_first, "r5=5 e=0 w6=6 c=0"),
    "host ends first, then the guest": ("r5 e w6 W c", _host_ends_first, "r5=5 e=0 w6=6 W=0 c=0"),
    "guest receives no more": ("R w5 F c", _guest_receives_no_more, "R=0 w5=5 F=EPIPE c=0"),
    "host receives no more": ("r5 F e c", _host_receives_no_more, "r5=5 F=EPIPE e=0 c=0"),
    "host leaves bytes unread": ("w5 E F c", _host_leaves_bytes_unread, "w5=5 E=0 F=EPIPE c=0"),
}
"""By name: what the guest does step by step, what the host does before it closes, what the guest sees."""


async def between(one: Shell, other: Shell, other_cid: int, size: int) -> None:
    """Send `size` bytes each way between two guests, at once."""
    port = next(_PORTS)
    listening = await other.start(f"vsock-load listen vsock {port} both {size} 7")
    assert await listening.line() == "listening"
    told = await one.sh(f"vsock-load connect vsock {other_cid} {port} both {size} 9", seconds=_SECONDS)
    answered = await listening.finish()
    assert _flow(told, "sent") == _flow(answered, "received")
    assert _flow(answered, "sent") == _flow(told, "received")


async def ends(guest: Shell, host: Host, control: Path) -> None:
    """End connections in every order, and look what each side sees; then none is left."""
    port = next(_PORTS)
    async with host.listening(port) as listener, control_client.connect(str(control)) as device:
        for name, (steps, at_host, expected) in ENDS.items():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_accept_and, listener, at_host)
                told = await guest.sh(f"vsock-load connect vsock 2 {port} steps {steps}")
            assert (name, told.split()) == (name, expected.split())
        await _until_none(device)
        await _reset(guest, listener, device, port)
        await _until_none(device)
    told = await guest.sh(f"vsock-load connect vsock 2 {port} steps c; true")
    assert told == "connect: ECONNRESET"  # nobody listens


async def _accept_and(
    listener: trio.SocketListener, at_host: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    async with await listener.accept() as stream:
        await at_host(stream)


async def _reset(
    guest: Shell, listener: trio.SocketListener, device: control_client.ControlClient, port: int
) -> None:
    """Reset a connection by hand: both sides see its end."""
    command = await guest.start(f"vsock-load connect vsock 2 {port} steps r5 E F c")
    async with await listener.accept() as stream:
        await stream.send_all(bytes(5))
        assert await command.line() == "r5=5"
        (listed,) = await device.call("connections")
        await device.call("reset", connection=listed.split()[0])
        assert (await command.finish()).split() == ["E=0", "F=EPIPE", "c=0"]
        assert await _read_to_the_end(stream) == b""


async def _until_none(device: control_client.ControlClient) -> None:
    """Wait until the guest has no connections any more."""
    with trio.fail_after(_SECONDS):
        while await device.call("connections"):  # noqa: ASYNC110 -- another process has them
            await trio.sleep(0.01)


async def call(control: Path, name: str) -> None:
    """Make a call at the control socket of a device."""
    async with control_client.connect(str(control)) as device:
        await device.call(name)
