"""Guest memory as a front-end passes it, takes it away, translates it and has it logged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.vhost_user import (
    AddMemReg,
    GetMaxMemSlots,
    MemoryRegion,
    Number,
    ProtocolFeature,
    RemMemReg,
    SetMemTable,
)
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo
from tests.vhost_user.raw_frontend import (
    DEFAULT_FEATURES,
    GUEST,
    MEMORY_SIZE,
    USER,
    GuestMemory,
    attached,
    until,
    works,
)
from vhost_user import RING_FEATURES, DeviceId, VirtioDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from vhost_user import Chain, Virtqueue

PAGE = 4096


def another_region(number: int = 1, size: int = 1 << 20) -> GuestMemory:
    """Return memory of its own, beside the first."""
    return GuestMemory(size, GUEST + number * MEMORY_SIZE, USER + number * MEMORY_SIZE)


@pytest.fixture
def more() -> Iterator[GuestMemory]:
    memory = another_region()
    yield memory
    memory.close()


async def test_memory_is_added_and_removed_while_rings_run(more: GuestMemory) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        for _ in range(5):
            await frontend.request(AddMemReg(more.region, fds=(more.fd.dup(),)))
            queue.ring.add([more.filled(b"from there")], [out := more.buffer(16)], (out,))
            queue.ring.publish()
            queue.kick.signal()
            await until(queue.ring.used)
            assert bytes(more.at(out)[:10]) == b"from there"
            await frontend.request(RemMemReg(more.region))
            assert await works(queue)


async def test_memory_that_is_added_twice_is_there_until_it_is_removed_twice(more: GuestMemory) -> None:
    """QEMU 7.2 adds and removes each region once for each pair of a network device's queues."""
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        for _ in range(2):
            await frontend.request(AddMemReg(more.region, fds=(more.fd.dup(),)))
        for _ in range(2):
            queue.ring.add([more.filled(b"from there")], [out := more.buffer(16)], (out,))
            queue.ring.publish()
            queue.kick.signal()
            await until(queue.ring.used)
            assert bytes(more.at(out)[:10]) == b"from there"
            await frontend.request(RemMemReg(more.region))
        reply = await frontend.try_request(RemMemReg(more.region))
        assert reply is not None
        assert reply.failed
        assert await works(queue)


async def test_descriptor_in_memory_that_was_removed_breaks_the_queue(
    more: GuestMemory, caplog: pytest.LogCaptureFixture
) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        other = frontend.queue(1)
        await other.start()
        await frontend.request(AddMemReg(more.region, fds=(more.fd.dup(),)))
        await frontend.request(RemMemReg(more.region))
        queue.ring.add([more.filled(b"gone")], [], ())
        queue.ring.publish()
        queue.kick.signal()
        with trio.fail_after(60):
            await queue.err.wait()
        assert "queue 0 is broken and stopped" in caplog.text
        assert hex(more.region.guest_address) in caplog.text
        assert await works(other)
        assert await queue.stop() == 0


class Holder(VirtioDevice):
    """Keeps the first chain, and completes the others in one of the ways that there are."""

    device_id = DeviceId.CONSOLE
    num_queues = 1

    def __init__(self, way: str, ring_features: Feature) -> None:
        self.way = way
        self.ring_features = ring_features
        self.completed = 0

    async def run_queue(self, queue: Virtqueue) -> None:
        held = None
        async for taken in self.taken(queue):
            chains = taken if held else taken[1:]
            held = held or taken[0]
            if self.way == "stock":
                queue.complete_together([(chain, 0) for chain in chains])
                queue.flush()
            else:
                for chain in chains:
                    chain.readable.read()
                    chain.complete()
            self.completed += len(chains)

    async def taken(self, queue: Virtqueue) -> AsyncIterator[Sequence[Chain]]:
        if self.way == "one by one":
            async for chain in queue:
                yield [chain]
        elif self.way == "batches":
            async for batch in queue.batches():
                yield batch
        else:
            while await queue.available():
                yield queue.take_now()


def mappings(memory: GuestMemory) -> int:
    """Return how often this process, which is both ends, has mapped a memory's file."""
    inode = str(os.fstat(memory.fd.fileno()).st_ino)
    return sum(line.split()[4] == inode for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("order", [Feature.NONE, Feature.IN_ORDER])
@pytest.mark.parametrize("way", ["one by one", "batches", "stock"])
async def test_removed_memory_is_unmapped_while_a_chain_elsewhere_is_outstanding(
    more: GuestMemory, way: str, order: Feature
) -> None:
    """A gpio event or a buffer to receive into may be outstanding for ever."""
    device = Holder(way, RING_FEATURES | order)
    async with attached(device) as frontend:
        await frontend.negotiate(DEFAULT_FEATURES | order)
        queue = await frontend.start()
        before = mappings(more)
        await frontend.request(AddMemReg(more.region, fds=(more.fd.dup(),)))
        assert mappings(more) == before + 1
        queue.ring.add([frontend.memory.filled(b"kept")], [], ())
        for _ in range(3):
            queue.ring.add([more.filled(b"done")], [more.buffer(16)], ())
        queue.ring.publish()
        queue.kick.signal()
        with trio.fail_after(60):
            while device.completed < 3:
                await trio.lowlevel.checkpoint()
        await frontend.request(RemMemReg(more.region))
        assert mappings(more) == before


async def test_rule_18_memory_table_is_replaced_while_rings_run() -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        for _ in range(5):
            await frontend.share_memory()
            assert await works(queue)


async def test_rule_11_refused_table_is_a_failure_that_is_logged_and_no_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        wrong = replace(frontend.memory.region, size=2 * MEMORY_SIZE)
        reply = await frontend.try_request(SetMemTable((wrong,), fds=(frontend.memory.fd.dup(),)))
        assert reply is not None
        assert reply.failed
        assert "SET_MEM_TABLE is refused" in caplog.text
        assert "reach past the end of a file" in caplog.text
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.start()
        assert await works(queue)


async def test_rule_16_region_is_found_by_address_and_size_alone(more: GuestMemory) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        await frontend.request(AddMemReg(more.region, fds=(more.fd.dup(),)))
        for other in (
            replace(more.region, guest_address=GUEST),
            replace(more.region, user_address=USER),
            replace(more.region, size=PAGE),
        ):
            reply = await frontend.try_request(RemMemReg(other))
            assert reply is not None
            assert reply.failed
        await frontend.request(RemMemReg(replace(more.region, mmap_offset=PAGE)))


async def test_509_regions(more: GuestMemory) -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        slots = (await frontend.ask(Number, GetMaxMemSlots())).value
        assert slots == 509
        for number in range(slots):
            region = MemoryRegion(number * PAGE, PAGE, USER + number * PAGE, number % 256 * PAGE)
            await frontend.request(AddMemReg(region, fds=(more.fd.dup(),)))
        reply = await frontend.try_request(AddMemReg(MemoryRegion(GUEST, PAGE, 0), fds=(more.fd.dup(),)))
        assert reply is not None
        assert reply.failed


async def test_gpa_addresses_name_rings_by_guest_address() -> None:
    async with attached(Echo()) as frontend:
        await frontend.negotiate()
        assert ProtocolFeature.GPA_ADDRESSES in frontend.session.protocol_features
        frontend.memory.region = replace(frontend.memory.region, user_address=GUEST)
        await frontend.share_memory()
        queue = frontend.queue()
        await queue.start()
        assert await works(queue)


# The guest's IOMMU
