"""A network card that sends all frames back: `vhost-user run tests.peers.looped:Looped`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

import trio

from protocol.virtio.features import Feature
from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.port import NetPort

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vhost_user.devices.net.ports.port import Receiver


class Loop(NetPort):
    """A cable with both ends in one card."""

    queue_pairs = 2

    def __init__(self) -> None:
        self._frames: tuple[deque[bytes], ...] = tuple(deque() for _ in range(self.queue_pairs))
        self._more = trio.lowlevel.ParkingLot()

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        self._frames[pair].append(b"".join(buffers)[:length])
        return True

    def flush(self, pair: int) -> None:
        self._more.unpark_all()

    async def receive(self, pair: int, receiver: Receiver) -> None:
        frames = self._frames[pair]
        while True:
            while frames:
                frame = frames[0]
                if receiver.put([memoryview(frame)], len(frame)) or not await receiver.until_room(len(frame)):
                    frames.popleft()
            receiver.flush()
            await self._more.park()


class Looped(Net):
    """A network card whose guest talks to itself. It can do IN_ORDER, where vhost-user-net offers none."""

    features = Feature.IN_ORDER

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Have none."""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(Loop())
