"""Load on a disk: random reads and writes, compared with a model."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tests.qemu.blk_driver import IN, OK, OUT, header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.qemu.virtio_pci import Queue, Ram, Request

SECTORS = 64
EMPTY = bytes(SECTORS * 512)
DEPTH = 24
SECONDS = 120


@dataclass(frozen=True)
class Flight:
    """A request that is out: where, what is written (None for a read), and in which memory it lies."""

    request: Request
    sector: int
    data: bytes | None
    ram: Ram


@dataclass
class Load:
    """Reads and writes of random sectors, DEPTH at a time, against what the sectors must hold.

    A sector has one request at a time. So a write that is done again after a later one was
    completed shows, as well as one that is completed and was not done.
    """

    queue: Queue
    random: random.Random = field(default_factory=lambda: random.Random(3))
    model: dict[int, bytes] = field(default_factory=lambda: dict.fromkeys(range(SECTORS), bytes(512)))
    completed: int = 0
    stop: bool = False
    gone: bool = False
    """True once the device has gone: what is out stays so."""
    outstanding: dict[int, Flight] = field(default_factory=dict)
    """By what names the request in its ring."""
    progress: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Submit requests until told to stop, and wait for the last ones, unless the device has gone."""
        while not self.gone and (not self.stop or self.outstanding):
            while not self.stop and len(self.outstanding) < DEPTH:
                await self.submit()
            await self.queue.kick()
            for name, length in await self.queue.take():
                await self.complete(name, length)

    async def submit(self) -> None:
        busy = {flight.sector for flight in self.outstanding.values()}
        sector = self.random.choice([sector for sector in range(SECTORS) if sector not in busy])
        ram, indirect = self.queue.ram, self.random.random() < 0.5
        if self.random.random() < 0.25:
            request, data = await self.queue.add([header(IN, sector)], [512, 1], indirect=indirect), None
        else:
            data = self.random.randbytes(16) * 32
            request = await self.queue.add([header(OUT, sector), data], [1], indirect=indirect)
        self.outstanding[request.head] = Flight(request, sector, data, ram)

    async def complete(self, name: int, length: int) -> None:
        flight = self.outstanding.pop(name)  # or it was done twice
        *room, status = await self.queue.written(flight.request, length)
        assert status == OK
        if flight.data is None:
            assert room == [self.model[flight.sector]], f"sector {flight.sector}"
        else:
            self.model[flight.sector] = flight.data
        self.completed += 1
        self.progress.unpark_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached` says so, which it is asked after each completion."""
        with trio.fail_after(SECONDS):
            while not reached():
                await self.progress.park()

    async def until_more(self, count: int) -> None:
        """Wait until `count` more are completed."""
        goal = self.completed + count
        await self.until(lambda: self.completed >= goal)

    async def until_unused(self, ram: Ram) -> None:
        """Wait until no request that is out lies in `ram`, from which the queue takes no more."""
        await self.until(lambda: all(flight.ram is not ram for flight in self.outstanding.values()))

    def content(self) -> bytes:
        """Return what the disk must hold once all are completed."""
        return b"".join(self.model[sector] for sector in range(SECTORS))


@asynccontextmanager
async def under_load(*queues: Queue) -> AsyncIterator[list[Load]]:
    """Keep the disks of these queues busy for the length of the block, then wait for what is out."""
    loads = [Load(queue) for queue in queues]
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for load in loads:
                nursery.start_soon(load.run)
            yield loads
            for load in loads:
                load.stop = True
