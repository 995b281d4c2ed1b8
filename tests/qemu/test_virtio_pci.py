"""virtio-pci as QEMU builds it: structures, access by configuration space, INTx."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.blk_driver import (
    CAPACITY,
    CONTENT,
    FLUSH,
    IN,
    OK,
    SECTORS,
    config,
    header,
    read,
    ready,
    start,
)
from tests.qemu.virtio_pci import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    EVENT_IDX,
    FEATURES_OK,
    INDIRECT_DESC,
    RING_PACKED,
    VERSION_1,
    VirtioPci,
    probe,
)
from tests.qemu.virtio_structures import (
    COMMON,
    DEVICE,
    ISR,
    NOTIFY,
    PCI_ACCESS,
    SHARED_MEMORY,
    Structure,
    Window,
)
from tests.rig.programs.backend import start_backend
from tests.rig.qemu.msix import message
from tests.rig.qemu.pci import INTERRUPT_PIN
from tests.rig.qemu.shared_memory import start_machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.qemu

RNG = 4
SECONDS = 60
DEVICE_STATUS = 20
QUEUES = 2

MINIMUM = {COMMON: 56, NOTIFY: 2 * QUEUES, ISR: 1, DEVICE: 60}
"""Bytes that a structure has at least: of DEVICE, those up to the fields of write-zeroes."""


async def test_structures_of_a_disk(directory: Path) -> None:
    """All that a driver looks for, each in a BAR that there is, and none over another."""
    options = (f"--num-queues={QUEUES}", "-v")
    async with start(directory, *options, properties=f",num-queues={QUEUES}") as setup:
        guest = setup.guest
        found = {structure.kind: structure for structure in guest.structures}
        assert set(found) == {COMMON, NOTIFY, ISR, DEVICE, PCI_ACCESS}
        mapped = [each for each in guest.structures if each.bar in guest.bars and each.size]
        for structure in mapped:
            assert structure.offset % 4 == 0
            assert structure.offset + structure.size <= guest.bars[structure.bar].size
            assert structure.size >= MINIMUM[structure.kind]
        places = sorted((each.bar, each.offset, each.size) for each in mapped if each.kind in MINIMUM)
        for (bar, offset, size), (next_bar, next_offset, _) in pairwise(places):
            assert bar != next_bar or offset + size <= next_offset
        assert found[NOTIFY].capability_size == found[PCI_ACCESS].capability_size == 20
        assert found[NOTIFY].size >= found[NOTIFY].multiplier * (QUEUES - 1) + 2


async def test_device_without_shared_memory_shows_none(directory: Path) -> None:
    async with (
        start_backend(directory, "rng") as backend,
        start_machine(
            directory, *backend.chardev(), "-device", "vhost-user-rng-pci,chardev=backend"
        ) as machine,
    ):
        guest = await probe(machine, RNG)
        assert {structure.kind for structure in guest.structures} >= {COMMON, NOTIFY, ISR, PCI_ACCESS}
        assert SHARED_MEMORY not in {structure.kind for structure in guest.structures}


def structure(guest: VirtioPci, kind: int) -> Structure:
    return next(each for each in guest.structures if each.kind == kind)


async def test_disk_is_reached_through_configuration_space(directory: Path) -> None:
    """As firmware does that has not mapped the BARs: read the capacity, kick, reset."""
    async with start(directory) as setup:
        guest = setup.guest
        window = Window(guest.pci, structure(guest, PCI_ACCESS))
        common, device, notify = (structure(guest, kind) for kind in (COMMON, DEVICE, NOTIFY))
        low, high = [await window.read(device.bar, device.offset + CAPACITY + at, 4) for at in (0, 4)]
        assert low | high << 32 == SECTORS == await config(guest, CAPACITY, 8)
        queue = await ready(guest)
        status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        assert await window.read(common.bar, common.offset + DEVICE_STATUS, 1) == status
        request = await queue.add([header(IN, 3)], [512, 1])
        assert await queue.take() == []
        await window.write(notify.bar, notify.offset, 0, 2)
        assert await queue.wait() == [(request.head, 513)]
        assert await queue.written(request, 513) == [CONTENT[3 * 512 : 4 * 512], OK]
        await window.write(common.bar, common.offset + DEVICE_STATUS, 0, 1)
        assert await guest.status() == 0


async def test_features_that_are_not_offered_are_not_accepted(directory: Path) -> None:
    async with start(directory) as setup:
        guest = setup.guest
        assert not await guest.offered() & RING_PACKED  # QEMU's packed=off is the default
        features = FLUSH | INDIRECT_DESC | VERSION_1
        assert await guest.negotiate(features | RING_PACKED) == features
        queue = await guest.set_up_queue()
        await guest.start()
        assert await read(queue, 0, 512) == CONTENT[:512]


@pytest.mark.parametrize("features", [INDIRECT_DESC, INDIRECT_DESC | EVENT_IDX])
async def test_packed_disk_is_reset_and_activated_anew(directory: Path, features: int) -> None:
    async with start(directory, properties=",packed=on") as setup:
        for life in range(3):
            queue = await ready(setup.guest, features | RING_PACKED)
            assert setup.guest.features & RING_PACKED
            for sector in range(200):  # once and a half round the ring
                assert await read(queue, sector, 512) == CONTENT[sector * 512 :][:512], (life, sector)
        await setup.guest.reset()


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(SECONDS):
        while not await holds():  # type: ignore[misc]
            pass


async def causes(guest: VirtioPci) -> int:
    """Wait for an interrupt, and serve the device until its line is low; return why it interrupted.

    It may do so twice for one request: a back-end that is given another eventfd repeats its call.
    """
    await until(guest.interrupts)
    found = 0
    while await guest.interrupts():
        found |= await guest.isr()
    return found


async def test_rule_24_interrupt_line_is_asserted_until_the_driver_reads_the_status(directory: Path) -> None:
    async with (
        start_backend(directory, "rng") as backend,
        start_machine(
            directory, *backend.chardev(), "-device", "vhost-user-rng-pci,chardev=backend"
        ) as machine,
    ):
        guest = await probe(machine, RNG, msix=False)
        assert await guest.pci.read(INTERRUPT_PIN, 1) == 1
        await guest.negotiate(0)
        queue = await guest.set_up_queue()
        await guest.start()
        assert not await guest.interrupts()
        for _ in range(3):
            await queue.request([], [64])
            assert await causes(guest) == 1


async def test_interrupt_line_tells_of_the_configuration_too(directory: Path) -> None:
    async with start(directory, msix=False) as setup:
        guest = setup.guest
        queue = await ready(guest, FLUSH)
        assert await read(queue, 0, 512) == CONTENT[:512]
        assert await causes(guest) == 1
        os.truncate(setup.image, 2 * len(CONTENT))
        with trio.fail_after(SECONDS):
            while not await causes(guest) & 2:
                pass
        assert await config(guest, CAPACITY, 8) == 2 * SECTORS


async def test_masked_vectors_of_queue_and_configuration_are_delivered_once(directory: Path) -> None:
    async with start(directory) as setup:
        guest = setup.guest
        await guest.negotiate(FLUSH)
        queue = await guest.set_up_queue(vector=0)
        await guest.set_config_vector(1)
        for vector in (0, 1):
            await guest.msix.mask(vector)
        await guest.start()
        os.truncate(setup.image, 2 * len(CONTENT))
        assert await read(queue, 0, 512) == CONTENT[:512]
        for vector in (0, 1):
            await until(lambda vector=vector: guest.msix.pending(vector))  # type: ignore[misc]
            assert not await guest.msix.fired(vector)
        for vector in (0, 1):
            await guest.msix.unmask(vector)
            assert await guest.msix.wait(vector) == message(vector)
            assert not await guest.msix.pending(vector)
        assert await config(guest, CAPACITY, 8) == 2 * SECTORS
