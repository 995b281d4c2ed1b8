"""A port that a test looks into, and the two ends of its cable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.virtio.net import GUEST_OFFLOADS, HOST_OFFLOADS, NetFeature
from vhost_user.devices.net.ports.port import NetPort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.devices.net.ports.port import Receiver


class TestPort(NetPort):
    """Keeps what the guest sends, and hands out the receivers."""

    __test__ = False
    offloads = GUEST_OFFLOADS | HOST_OFFLOADS

    def __init__(self, pairs: int = 1) -> None:
        self.queue_pairs = pairs
        self.sent: list[tuple[int, bytes]] = []
        self.flushes = 0
        self.is_full = False
        self.guest_takes = NetFeature.NONE
        self.receivers: dict[int, Receiver] = {}
        self.closed = False
        self._changed = trio.lowlevel.ParkingLot()

    def set_offloads(self, features: NetFeature) -> None:
        self.guest_takes = features & GUEST_OFFLOADS

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        if self.is_full:
            return False
        frame = b"".join(buffers)
        assert len(frame) == length
        self.sent.append((pair, frame))
        return True

    def flush(self, pair: int) -> None:
        self.flushes += 1

    async def until_sendable(self, pair: int) -> None:
        while self.is_full:
            await self._changed.park()

    def make_room(self) -> None:
        self.is_full = False
        self._changed.unpark_all()

    async def receive(self, pair: int, receiver: Receiver) -> None:
        self.receivers[pair] = receiver
        self._changed.unpark_all()
        try:
            await trio.sleep_forever()
        finally:
            del self.receivers[pair]

    async def until_receiving(self, pair: int = 0) -> Receiver:
        with trio.fail_after(60):
            while pair not in self.receivers:
                await self._changed.park()
        return self.receivers[pair]

    def close(self) -> None:
        self.closed = True
