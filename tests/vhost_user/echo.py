"""Devices for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhost_user import RING_FEATURES, DeviceId, Feature, VirtioDevice

if TYPE_CHECKING:
    from vhost_user import Chain, Virtqueue


class Echo(VirtioDevice):
    """Writes back what it reads, and counts."""

    device_id = DeviceId.CONSOLE
    name = "echo"
    num_queues = 2
    config = bytes(range(16))
    ring_features = RING_FEATURES | Feature.ACCESS_PLATFORM

    def __init__(self) -> None:
        self.served = 0
        self.resets = 0
        self.starts = 0

    def reset(self) -> None:
        self.resets += 1

    async def run_queue(self, queue: Virtqueue) -> None:
        self.starts += 1
        async for chain in queue:
            self.serve(chain)

    def serve(self, chain: Chain) -> None:
        self.served += 1
        chain.writable.write(chain.readable.read())
        chain.complete()


class Gate(Echo):
    """An Echo that serves a chain once the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = trio.Event()
        self.held: list[Chain] = []
        self.ended = False

    async def run_queue(self, queue: Virtqueue) -> None:
        self.starts += 1
        try:
            async for chain in queue:
                self.held.append(chain)
                await self.open.wait()
                self.held.remove(chain)
                self.serve(chain)
        finally:
            self.ended = True
