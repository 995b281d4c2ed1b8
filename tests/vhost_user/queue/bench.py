"""A queue on a real ring with a driver on the other side, in one process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.io import EventFd
from protocol.virtio.features import Feature
from tests.vhost_user.ring.rig import Rig, fill
from vhost_user.queue import Virtqueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user import Chain
    from vhost_user.memory import IotlbMissError


SECONDS = 60
SIZE = 64


class Owner:
    """What a queue needs around it, and what it did there."""

    def __init__(self, kick: EventFd | None) -> None:
        self.kick = kick
        self.publications: list[bool] = []
        self.reasons: list[str] = []
        self.unshared = 0

    def published(self, wants_call: bool) -> None:
        self.publications.append(wants_call)

    def broke(self, reason: str) -> None:
        self.reasons.append(reason)

    def memory_not_shared(self) -> None:
        self.unshared += 1

    async def resolve(self, miss: IotlbMissError) -> None:
        raise AssertionError("this ring needs no IOMMU")


class Bench:
    """A queue with a driver, in one process."""

    def __init__(self, rig: Rig, *, polled: bool = False) -> None:
        self.rig = rig
        self.owner = Owner(None if polled else EventFd.create())
        self.ring = rig.start()
        self.queue = Virtqueue(0, SIZE, Feature(rig.config.features), self.ring, self.owner)

    def submit(self, count: int = 1) -> list[int]:
        """Make requests available, and kick; return their tokens."""
        tokens = [self.rig.add([4], [8]).token for _ in range(count)]
        self.rig.driver.publish()
        if self.owner.kick is not None:
            self.owner.kick.signal()
        return tokens

    def close(self) -> None:
        if self.owner.kick is not None:
            self.owner.kick.close()
        del self.ring, self.queue
        self.rig.close()


@asynccontextmanager
async def publisher(queue: Virtqueue) -> AsyncIterator[trio.Nursery]:
    """Run what the owner of a queue runs beside it."""
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.publish_deferred)
            yield nursery
            nursery.cancel_scope.cancel()


def finish(chain: Chain) -> None:
    """Do what a chain asks for, and complete it."""
    chain.complete(fill(chain))


async def serve(queue: Virtqueue) -> None:
    async for chain in queue:
        finish(chain)
