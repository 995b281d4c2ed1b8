"""Thousands of resets: User Mode Linux unbinds and binds its drivers in a loop.

Unbinding a virtio driver disables the rings, and binding it sets them up anew, all on one connection.
Unbinding the transport's driver closes the connection. The guest's shell runs the loops without
starting a program, which is what takes time in User Mode Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.rig.programs.backend import RunningBackend

pytestmark = [pytest.mark.uml, pytest.mark.slow]

TEXT = "from our device"
READ_RNG = f"""
    {{ read -r part; read -r line; }} </dev/hwrng
    [ "$line" = "{TEXT[::-1]}" ] || {{ echo "round $round: $part, $line"; exit 1; }}
"""
"""Reads a line byte by byte, as a shell does; Linux hands out its buffer from the end then."""
READ_DISK = """
    read -r line </dev/vda
    [ "$line" = "round $round" ] || { echo "round $round: $line"; exit 1; }
"""
WRITE_DISK = 'echo "round $round" 1<>/dev/vda'
LOOP_SECONDS = 1200


def loop(driver: str, device: str, before: str, after: str) -> str:
    """Return a script that unbinds `driver` from `device` and binds it again, $rounds times."""
    return f"""
cd /sys/bus/{driver}
for round in $(seq $rounds); do
    {before}
    echo {device} >unbind
    echo {device} >bind
    {after}
done
"""


async def descriptors_kept(backend: RunningBackend, guest: uml.Guest, script: str, rounds: int) -> bool:
    """Let the guest run `script`; return whether all rounds but the first kept the back-end's descriptors."""
    await guest.sh(f"rounds=1\n{script}")
    before = backend.program.file_descriptors()
    await guest.sh(f"rounds={rounds - 1}\n{script}", seconds=LOOP_SECONDS)
    return backend.program.file_descriptors() == before


def starts(backend: RunningBackend) -> int:
    """Return how often queue 0 was started, by the log of a back-end with -v."""
    return backend.program.output().count(": queue 0 starts at 0,")


async def test_rng_is_reset_1500_times(directory: Path) -> None:
    rounds = 1500
    source = directory / "numbers"
    source.write_text(f"{TEXT}\n" * 256)
    async with uml.boot_with(directory, DeviceId.RNG, "rng", "-f", str(source), "-v") as (guest, backend):
        script = loop("virtio/drivers/virtio_rng", "virtio0", ":", READ_RNG)
        assert await descriptors_kept(backend, guest, script, rounds)
        assert starts(backend) == 1 + rounds
        assert backend.program.output().count("a front-end is connected") == 1


async def test_disk_is_reset_700_times(directory: Path) -> None:
    rounds = 700
    image = directory / "image"
    image.write_bytes(bytes(1 << 20))
    async with uml.boot_with(directory, DeviceId.BLOCK, "blk", "--blk-file", str(image), "-v") as (
        guest,
        backend,
    ):
        script = loop("virtio/drivers/virtio_blk", "virtio0", WRITE_DISK, READ_DISK)
        assert await descriptors_kept(backend, guest, script, rounds)
        assert starts(backend) == 1 + rounds
        assert image.read_bytes().startswith(f"round {rounds - 1}\n".encode())


async def test_front_end_connects_300_times(directory: Path) -> None:
    rounds = 300
    image = directory / "image"
    image.write_bytes(bytes(1 << 20))
    async with uml.boot_with(directory, DeviceId.BLOCK, "blk", "--blk-file", str(image)) as (guest, backend):
        script = loop("platform/drivers/virtio-uml", "virtio-uml.0", WRITE_DISK, READ_DISK)
        assert await descriptors_kept(backend, guest, script, rounds)
        assert backend.program.output().count("a front-end is connected") == 1 + rounds
        assert image.read_bytes().startswith(f"round {rounds - 1}\n".encode())
