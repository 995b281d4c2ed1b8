"""Users' own handlers go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.virtio.vsock import Operation
from tests.vhost_user.devices.vsock.driver import PORT, attached_guest, received
from vhost_user.devices.vsock.device import Vsock

if TYPE_CHECKING:
    import pytest

from tests.vhost_user.devices.own_code import SECONDS, Mistake


async def test_handler_that_fails_resets_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        data = await received(stream, 1)
        if data == b"!":
            raise Mistake("in handle")
        await stream.send_all(data.upper())

    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:
        listener = device.listen(PORT)
        nursery.start_soon(listener.serve, handle)
        kept = await guest.port(99, PORT).connected()
        for port in range(100, 110):
            bad = await guest.port(port, PORT).connected()
            await bad.send(Operation.RW, b"!")
            await bad.expect(Operation.RST)
        await kept.send(Operation.RW, b"a")
        await kept.expect_data(b"A")
        await kept.expect(Operation.SHUTDOWN)
        listener.close()  # which ends serve()
    assert caplog.messages == [
        f"the handler of port {PORT} failed: its connection is reset. This is logged once."
    ]


async def test_guest_that_goes_is_no_failure_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def flood(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(bytes(1 << 20))
        finally:
            ended.set()

    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:
        with device.listen(PORT) as listener:
            nursery.start_soon(listener.serve, flood)
            end = await guest.port(99, PORT).connected()
            await end.send(Operation.RST)
            with trio.fail_after(SECONDS):
                await ended.wait()
    assert not caplog.records
