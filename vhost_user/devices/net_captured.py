"""A port whose frames are written to a capture, both ways, as its guest sends and gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhost_user.devices.net_buffers import first
from vhost_user.devices.net_host import Port, Receiver
from vhost_user.devices.net_pcap import Direction
from vhost_user.devices.net_wrapper import PortWrapper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.net_pcap import Capture


class CapturedPort(PortWrapper):
    """Around any port. The capture may be that of several ports, of which this is the one `interface`."""

    def __init__(self, inner: Port, capture: Capture, interface: int = 0) -> None:
        """Own `inner`, and the capture together with the other ports."""
        super().__init__(inner)
        self._capture = capture
        self._interface = interface
        self._to_come_again: set[int] = set()

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Write a frame before others get it, and only once when it comes again."""
        if pair not in self._to_come_again:
            self.write(Direction.FROM_GUEST, buffers, length)
        is_done = self.inner.send(pair, buffers, length)
        if is_done:
            self._to_come_again.discard(pair)
        else:
            self._to_come_again.add(pair)
        return is_done

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Write what the guest gets."""
        await self.inner.receive(pair, _CapturingReceiver(self, receiver))

    def write(self, direction: Direction, buffers: Sequence[memoryview], length: int) -> None:
        """Write a frame."""
        if self._capture.is_open:
            self._capture.write(self._interface, direction, first(buffers, length), self.header_size)

    async def run(self) -> None:
        """Serve a capture that somebody reads meanwhile."""
        async with trio.open_nursery() as nursery:
            if self._interface == 0:
                nursery.start_soon(self._capture.run)
            await self.inner.run()

    def close(self) -> None:
        """End the capture, and close the port within."""
        self._capture.close()
        super().close()


class _CapturingReceiver(Receiver):
    """Around the guest's receiver."""

    def __init__(self, port: CapturedPort, receiver: Receiver) -> None:
        self._port = port
        self._receiver = receiver
        self._buffers: Sequence[memoryview] = ()

    def window(self) -> Sequence[memoryview] | None:
        return self._noted(self._receiver.window())

    def room(self, size: int) -> Sequence[memoryview] | None:
        return self._noted(self._receiver.room(size))

    def fill(self, size: int) -> None:
        self._port.write(Direction.TO_GUEST, self._buffers, size)
        self._receiver.fill(size)

    def flush(self) -> None:
        self._receiver.flush()

    async def until_room(self, size: int = 1) -> bool:
        return await self._receiver.until_room(size)

    def _noted(self, buffers: Sequence[memoryview] | None) -> Sequence[memoryview] | None:
        self._buffers = buffers or ()
        return buffers
