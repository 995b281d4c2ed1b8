"""vhost-user-blk restarted under load: nothing is lost, nothing is done twice."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.blk_driver import BLK, BLOCK, ready
from tests.qemu.blk_load import EMPTY, SECONDS, SECTORS, Load, under_load
from tests.qemu.virtio_pci import EVENT_IDX, INDIRECT_DESC, RING_PACKED, VirtioPci, probe
from tests.rig.programs.backend import command, start_program
from tests.rig.qemu.msix import message
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.rig.programs.process import Program

pytestmark = pytest.mark.qemu

LIVES = 5
LATE = ("--fault", f"any:lba=0-{SECTORS // 2}:latency=12ms", "--fault", "any:latency=2ms")
"""So some are in flight for sure, and they come back in another order."""


@asynccontextmanager
async def life(directory: Path, number: int, *options: str) -> AsyncIterator[Program]:
    """Run the back-end, each time on the same socket and the same file."""
    path, image = directory / "disk.sock", directory / "disk"
    argv = command(BLK, "--socket-path", str(path), "--blk-file", str(image), *options)
    async with start_program(directory, argv, f"life{number}") as program:
        yield program


@pytest.mark.slow
@pytest.mark.parametrize("features", [INDIRECT_DESC, INDIRECT_DESC | EVENT_IDX | RING_PACKED])
async def test_back_end_is_killed_under_load(directory: Path, features: int) -> None:
    image = directory / "disk"
    image.write_bytes(EMPTY)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(life(directory, 0))
        packed = ",packed=on" if features & RING_PACKED else ""
        machine = await stack.enter_async_context(
            start_machine(
                directory,
                *("-chardev", f"socket,id=backend,path={directory}/disk.sock,reconnect=1"),
                *("-device", f"vhost-user-blk-pci,chardev=backend{packed}"),
            )
        )
        guest = await probe(machine, BLOCK)
        queue = await ready(guest, features)
        async with under_load(queue) as (load,):
            await kill_and_restart(directory, guest, load, first)
            await stack.enter_async_context(life(directory, LIVES))
        await guest.reset()
        assert await queue.take() == []
        assert image.read_bytes() == load.content()


async def kill_and_restart(directory: Path, guest: VirtioPci, load: Load, first: Program) -> None:
    await load.until_more(100)
    first.kill()
    for number in range(1, LIVES):
        late = LATE if number % 2 else ()
        async with life(directory, number, *late) as program:
            await load.until_more(load.random.randrange(50, 150))
            await guest.msix.wait(0)  # perhaps of the life before
            assert await guest.msix.wait(0) == message(0)
            await end(program, gently=number % 3 == 0)


async def end(program: Program, *, gently: bool) -> None:
    """Kill it as with kill -9, or tell it to end, which it does at once and with code 0 under any load."""
    if not gently:
        program.kill()
        return
    program.terminate()
    with trio.fail_after(SECONDS):
        assert await program.wait() == 0
