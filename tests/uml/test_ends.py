"""A User Mode Linux that is killed while it writes, and a back-end that is killed under it."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.virtio.ids import DeviceId
from tests.rig.guest import uml
from tests.rig.programs.backend import start_backend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.uml

MIB = 1 << 20
WRITTEN = 2 * MIB
ORIGINAL = random.Random(1).randbytes(8 * MIB)
SECONDS = 60

LOAD = f"""
while [ -b /dev/vda ]; do
    dd if=/tmp/data of=/dev/vda bs=16k oflag=direct conv=notrunc status=none
    dd if=/dev/vda of=/tmp/back bs=16k count={WRITTEN // 16384} iflag=direct status=none
    cmp /tmp/data /tmp/back && echo verified
done
"""
"""Writes the same to the beginning of the disk again and again."""


@pytest.fixture
def image(directory: Path) -> Path:
    """The disk's file on the host."""
    path = directory / "image"
    path.write_bytes(ORIGINAL)
    return path


async def write_without_end(guest: uml.Guest) -> str:
    """Let the guest write in the background, and see it begin; return the SHA-256 of what it writes."""
    await guest.sh(f"head -c {WRITTEN} /dev/urandom >/tmp/data")
    await guest.sh(f"(\n{LOAD}\n) >/tmp/log 2>&1 &")
    await guest.sh("until [ $(grep -c verified /tmp/log) -ge 3 ]; do usleep 10000; done")
    return (await guest.sh("sha256sum /tmp/data")).split()[0]


def content(file: Path) -> bytes:
    return file.read_bytes()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    with trio.fail_after(SECONDS):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_front_end_is_killed_and_another_one_served(directory: Path, image: Path) -> None:
    async with start_backend(directory, "blk", "--blk-file", str(image), *uml.SUITED) as backend:
        program, device = backend.program, uml.device(backend.socket, DeviceId.BLOCK)
        descriptors = set()
        for number in range(1, 4):
            async with uml.boot(directory, device) as guest:
                assert (await guest.sh("sha256sum /dev/vda")).split()[0] == digest(content(image))
                written = await write_without_end(guest)
                await guest.kill()
            await until(lambda: program.output().count("the front-end has left") == number)  # noqa: B023
            descriptors.add(program.file_descriptors())
            on_host = content(image)
            assert digest(on_host[:WRITTEN]) == written
            assert on_host[WRITTEN:] == ORIGINAL[WRITTEN:]
        assert len(descriptors) == 1


@pytest.mark.parametrize("load", [True, False])
async def test_guest_lives_on_without_its_disk_when_the_back_end_is_killed(
    directory: Path, image: Path, *, load: bool
) -> None:
    """What is under way then stays so for good, which is Linux's choice; but the disk is unplugged."""
    async with uml.boot_with(directory, DeviceId.BLOCK, "blk", "--blk-file", str(image)) as (guest, backend):
        written = await write_without_end(guest) if load else digest(ORIGINAL[:WRITTEN])
        backend.program.kill()
        await backend.program.wait()
        await guest.sh('until [ -z "$(ls /sys/bus/virtio/devices)" ]; do usleep 10000; done')
        assert await guest.sh("echo alive") == "alive"
        assert not guest.program.ended
    assert digest(content(image)[:WRITTEN]) == written
