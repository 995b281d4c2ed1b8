"""docs/vsock.md is true: its programs do what it says of them, and so do its calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from protocol.virtio.vsock import Operation
from tests.docs.documents import blocks, read
from tests.vhost_user.devices.vsock.driver import attached_guest
from vhost_user.devices.vsock.device import Vsock
from vhost_user.devices.vsock.host import UnixSockets
from vhost_user.devices.vsock.options import _TYPES

if TYPE_CHECKING:
    import socket
    from pathlib import Path

GUIDE = read("vsock.md")


@pytest.fixture(scope="module")
def guide() -> dict[str, Any]:
    """What the guide's code defines."""
    names: dict[str, Any] = {}
    for block in blocks(GUIDE, "python"):
        exec(compile(block, "vsock.md", "exec"), names)  # noqa: S102 -- it is ours
    return names


async def test_programs_of_the_host(guide: dict[str, Any], directory: Path) -> None:
    path = str(directory / "vsock")
    async with attached_guest(Vsock(host=UnixSockets(path, 10))) as guest:
        with guide["listen_for_guest"](path, 5000) as listener:
            end = await guest.port(1000, 5000).connected()
            with listener.accept()[0] as sock:
                sock.sendall(b"hello")
                await end.expect_data(b"hello")
            await end.expect(Operation.SHUTDOWN)
            await end.send(Operation.RST)
        socks: list[socket.socket] = []

        async def connect() -> None:
            socks.append(await trio.to_thread.run_sync(guide["connect_to_guest"], path, 1234))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            end = await guest.accepted()
        with socks[0] as sock:
            sock.sendall(b"hello")
            await end.expect_data(b"hello")


async def test_program_that_is_refused(guide: dict[str, Any], directory: Path) -> None:
    path = str(directory / "vsock")
    async with attached_guest(Vsock(host=UnixSockets(path, 10))) as guest, trio.open_nursery() as nursery:

        async def refuse() -> None:
            header, _ = await guest.packet()
            await guest.send(header.answer(Operation.RST))

        nursery.start_soon(refuse)
        with pytest.raises(ConnectionRefusedError):
            await trio.to_thread.run_sync(guide["connect_to_guest"], path, 1234)


async def test_a_program_with_the_device_in_it(guide: dict[str, Any]) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:
        nursery.start_soon(guide["echo"], device, 7)
        await trio.testing.wait_all_tasks_blocked()
        end = await guest.port(1000, 7).connected()
        await end.send(Operation.RW, b"hello")
        await end.expect_data(b"hello")
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await guide["ask"](device, 80))

        async with trio.open_nursery() as asking:
            asking.start_soon(ask)
            end = await guest.accepted()
            await end.expect_data(b"who are you?")
            await end.send(Operation.RW, b"a guest")
        assert answers == [b"a guest"]
        nursery.cancel_scope.cancel()


def test_calls() -> None:
    calls = {name for name, *_ in re.findall(r"^\| `(\w+)( [A-Z]+)?` \|", GUIDE, re.MULTILINE)}
    with Vsock() as device:
        assert calls == set(device.simulation.calls())


def test_settings_of_a_guest() -> None:
    (row,) = re.findall(r"^\| `--vm SETTINGS` \|.*`(.*)`", GUIDE, re.MULTILINE)
    assert row == ",".join(f"{name}=..." for name in _TYPES)
