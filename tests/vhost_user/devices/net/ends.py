"""Stand-ins for guests at the ports of a network, and frames for them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from protocol.virtio.features import Feature
from protocol.virtio.net import GUEST_OFFLOADS, HEADER, HOST_OFFLOADS
from vhost_user.devices.net.ports.port import ROOM_SECONDS, Receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vhost_user.devices.net.ports.port import NetPort

BROADCAST = b"\xff" * 6
EVERYTHING = Feature(HOST_OFFLOADS | GUEST_OFFLOADS)
NOTHING_LEFT = bytes(HEADER.size)


def mac(number: int) -> bytes:
    """Return the address of the guest at this port."""
    return bytes([0x52, 0x54, 0, 0, 0, number])


def frame(to: bytes, source: bytes, data: bytes = b"", *, header: bytes = NOTHING_LEFT) -> bytes:
    """Return a frame as a driver sends it."""
    return header + to + source + b"\x88\xb5" + data


class End(Receiver):
    """A guest: gets frames while there is room for them, and sends to its port."""

    def __init__(self, port: NetPort, *, slots: int = 1000) -> None:
        self.port = port
        self.slots = slots
        """How many more frames it has room for."""
        self.largest = 1 << 20
        """The largest frame that it will ever have room for."""
        self.got: list[bytes] = []
        """What it has been shown."""
        self._filled: list[bytes] = []
        self._room: memoryview | None = None
        self._more = trio.lowlevel.ParkingLot()

    def send(self, data: bytes, *, pieces: int = 1, pair: int = 0) -> None:
        """Send a frame, in so many buffers."""
        step = -(-len(data) // pieces)
        view = memoryview(bytearray(data))
        buffers = [view[at : at + step].toreadonly() for at in range(0, len(data), step)]
        assert self.port.send(pair, buffers, len(data))
        self.port.flush(pair)

    def take(self) -> list[bytes]:
        """Return what it has been shown since last time."""
        got, self.got = self.got, []
        return got

    def give_room(self, slots: int) -> None:
        """Have room for so many frames more."""
        self.slots += slots
        self._more.unpark_all()

    def window(self) -> Sequence[memoryview] | None:
        return self.room(1 << 17)

    def room(self, size: int) -> Sequence[memoryview] | None:
        if not self.slots or size > self.largest:
            return None
        self._room = memoryview(bytearray(size + 10))
        return [self._room[:11], self._room[11:]]

    def fill(self, size: int) -> None:
        assert self._room is not None
        self._filled.append(bytes(self._room[:size]))
        self._room = None
        self.slots -= 1

    def flush(self) -> None:
        self.got += self._filled
        self._filled = []

    async def until_room(self, size: int = 1) -> bool:
        self.flush()
        with trio.move_on_after(ROOM_SECONDS) as scope:
            while not self.slots or size > self.largest:
                await self._more.park()
        return not scope.cancelled_caught


@asynccontextmanager
async def plugged_in(
    *ports: NetPort, features: Feature = EVERYTHING, header_size: int = HEADER.size
) -> AsyncIterator[list[End]]:
    """Have a guest at each of these ports for the length of the block."""
    ends = [End(port) for port in ports]
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for port, end in zip(ports, ends, strict=True):
                port.set_features(features, header_size)
                nursery.start_soon(port.run)
                nursery.start_soon(port.receive, 0, end)
            await wait_all_tasks_blocked()
            yield ends
            nursery.cancel_scope.cancel()
