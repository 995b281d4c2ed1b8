"""vhost-user-blk killed under load and started again: nothing is lost, and nothing done twice."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.blk_driver import BLK, BLOCK, IN, OK, OUT, header, ready
from tests.qemu.virtio_pci import Request, SplitQueue, probe
from tests.rig.backend import command, start_machine, start_program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.process import Program

pytestmark = pytest.mark.qemu

SECTORS = 64
DEPTH = 24
LIVES = 6
LATE = ("--fault", f"any:lba=0-{SECTORS // 2}:latency=12ms", "--fault", "any:latency=2ms")
"""So some are in flight for sure, and they come back in another order."""
SECONDS = 60


@dataclass
class Load:
    """Reads and writes of random sectors, DEPTH at a time, against what the sectors must hold.

    A sector has one request at a time. So a write that is done again after a later one was
    completed shows, as well as one that is completed and was not done.
    """

    queue: SplitQueue
    model: dict[int, bytes]
    random: random.Random
    completed: int = 0
    stop: bool = False
    outstanding: dict[int, tuple[Request, int, bytes | None]] = field(default_factory=dict)
    """By the head: where, and what is written; None for a read."""
    goal: int = 0
    reached: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Submit requests until told to stop, and wait for the last ones."""
        while not self.stop or self.outstanding:
            while not self.stop and len(self.outstanding) < DEPTH:
                await self.submit()
            await self.queue.kick()
            for head, length in await self.queue.take():
                await self.complete(head, length)

    async def submit(self) -> None:
        busy = {sector for _, sector, _ in self.outstanding.values()}
        sector = self.random.choice([sector for sector in range(SECTORS) if sector not in busy])
        if self.random.random() < 0.25:
            request, data = await self.queue.add([header(IN, sector)], [512, 1]), None
        else:
            data = self.random.randbytes(16) * 32
            request = await self.queue.add([header(OUT, sector), data], [1])
        self.outstanding[request.head] = request, sector, data

    async def complete(self, head: int, length: int) -> None:
        request, sector, data = self.outstanding.pop(head)  # or it was done twice
        *room, status = await self.queue.written(request, length)
        assert status == OK
        if data is None:
            assert room == [self.model[sector]], f"sector {sector}"
        else:
            self.model[sector] = data
        self.completed += 1
        if self.completed >= self.goal:
            self.reached.set()

    async def until_more(self, count: int) -> None:
        """Wait until `count` more are completed."""
        self.goal, self.reached = self.completed + count, trio.Event()
        with trio.fail_after(SECONDS):
            await self.reached.wait()


@asynccontextmanager
async def life(directory: Path, number: int, *options: str) -> AsyncIterator[Program]:
    """Run the back-end, each time on the same socket and the same file."""
    path, image = directory / "disk.sock", directory / "disk"
    argv = command(BLK, "--socket-path", str(path), "--blk-file", str(image), *options)
    async with start_program(directory, argv, f"life{number}") as program:
        yield program


@pytest.mark.slow
async def test_back_end_is_killed_under_load(directory: Path) -> None:
    image = directory / "disk"
    image.write_bytes(bytes(SECTORS * 512))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(life(directory, 0))
        machine = await stack.enter_async_context(
            start_machine(
                directory,
                *("-chardev", f"socket,id=backend,path={directory}/disk.sock,reconnect=1"),
                *("-device", "vhost-user-blk-pci,chardev=backend"),
            )
        )
        queue = await ready(await probe(machine, BLOCK))
        load = Load(queue, dict.fromkeys(range(SECTORS), bytes(512)), random.Random(3))
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run)
                await kill_and_restart(directory, load, first)
                await stack.enter_async_context(life(directory, LIVES))
                load.stop = True
        content = image.read_bytes()
    assert {sector: content[sector * 512 :][:512] for sector in range(SECTORS)} == load.model


async def kill_and_restart(directory: Path, load: Load, first: Program) -> None:
    await load.until_more(100)
    first.kill()
    for number in range(1, LIVES):
        late = LATE if number % 2 else ()
        async with life(directory, number, *late) as program:
            await load.until_more(load.random.randrange(50, 150))
            program.kill()
