"""The device of examples/scripted_rng.py behind QEMU, started in both of its ways."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.qemu.virtio_pci import probe
from tests.rig.programs import process
from tests.rig.programs.backend import RunningBackend, start_backend, until_listening
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.qemu

EXAMPLE = Path(__file__).parents[2] / "examples" / "scripted_rng.py"
RNG = 4


@asynccontextmanager
async def by_itself(directory: Path) -> AsyncIterator[RunningBackend]:
    path = directory / "rng.sock"
    argv = [sys.executable, str(EXAMPLE), str(path), "00", "01", "02", "ff"]
    async with process.start(argv) as program:
        await until_listening(path)
        yield RunningBackend(program, path)


@pytest.mark.parametrize("way", ["python3 scripted_rng.py", "vhost-user run"])
async def test_guest_reads_the_script(directory: Path, way: str) -> None:
    running = start_backend(directory, "examples.scripted_rng:ScriptedRng")
    async with by_itself(directory) if way.startswith("python3") else running as backend:
        device = ["-device", "vhost-user-rng-pci,chardev=rng"]
        async with start_machine(directory, *backend.chardev("rng"), *device) as machine:
            guest = await probe(machine, RNG)
            await guest.negotiate(0)
            queue = await guest.set_up_queue()
            await guest.start()
            assert await queue.request([], [6, 4]) == [bytes([0, 1, 2, 255, 0, 1]), bytes([2, 255, 0, 1])]
            assert await queue.request([], [1]) == [b"\x02"]
