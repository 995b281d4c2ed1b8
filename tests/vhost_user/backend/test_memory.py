"""Guest memory as a front-end passes it, takes it away, translates it and has it logged."""

from __future__ import annotations

import mmap
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.fds import OwnedFd
from protocol.io import EventFd
from protocol.vhost_user import (
    AddMemReg,
    BackendIotlbMsg,
    GetMaxMemSlots,
    IotlbMsg,
    IotlbType,
    MemoryRegion,
    Number,
    Permission,
    ProtocolFeature,
    RemMemReg,
    SetFeatures,
    SetLogBase,
    SetLogFd,
    SetMemTable,
    VringAddressFlag,
)
from protocol.virtio.features import Feature
from tests.vhost_user.echo import Echo, Gate
from tests.vhost_user.raw_frontend import (
    DEFAULT_FEATURES,
    GUEST,
    MEMORY_SIZE,
    USER,
    Frontend,
    GuestMemory,
    attached,
    until,
)
from vhost_user import RING_FEATURES, DeviceId, VirtioDevice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from protocol.vhost_user import FrontendChannel, Packet, Refused, Request
    from tests.vhost_user.raw_frontend import Queue
    from vhost_user import Chain, Virtqueue

PAGE = 4096


async def works(queue: Queue) -> bool:
    """Tell whether the device serves the queue."""
    return await queue.exchange([b"ping"], [8]) == [b"ping"]


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

SHIFT = 0x10_0000_0000
"""I/O virtual addresses are guest addresses and this."""


class Iommu:
    """A front-end that maps everything, a page at a time, when it is asked."""

    def __init__(self, frontend: Frontend, *, answers: bool = True) -> None:
        self.misses: list[int] = []
        self.failures: list[BackendIotlbMsg] = []
        self.is_silent = False
        """Whether it leaves misses unanswered."""
        self.flushes = 0
        """How often it has everything forgotten between telling of a page and the answer to the miss."""
        self._frontend = frontend
        self._answers = answers
        frontend.answer = self.answer  # type: ignore[method-assign]

    async def answer(self, session: FrontendChannel, request: Request | Refused) -> Packet | None:
        assert isinstance(request, BackendIotlbMsg)
        if request.type is IotlbType.ACCESS_FAIL:
            self.failures.append(request)
            return session.acknowledge(request)
        assert request.type is IotlbType.MISS
        self.misses.append(request.iova)
        if self.is_silent:
            return None
        if self._answers:
            await self.map(request.iova)
        if self.flushes:
            self.flushes -= 1
            await self.flush()
        return session.acknowledge(request, ok=self._answers)

    async def flush(self) -> None:
        """Have all that was told forgotten."""
        await self._frontend.request(IotlbMsg(0, 1 << 63, 0, Permission.READ, IotlbType.INVALIDATE))

    async def map(self, iova: int) -> None:
        page = iova // PAGE * PAGE
        user = page - SHIFT - GUEST + USER
        access = Permission.READ | Permission.WRITE
        await self._frontend.request(IotlbMsg(page, PAGE, user, access, IotlbType.UPDATE))


async def translated(frontend: Frontend) -> Queue:
    """Start a queue that finds nothing but by asking for it."""
    features = DEFAULT_FEATURES | Feature.ACCESS_PLATFORM
    await frontend.negotiate(features)
    await frontend.share_memory()
    # The driver's addresses are I/O virtual ones.
    region = frontend.memory.region
    frontend.memory.region = replace(region, guest_address=GUEST + SHIFT, user_address=GUEST + SHIFT)
    return frontend.queue()


async def test_addresses_are_asked_for_when_they_are_needed() -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        for _ in range(3):
            assert await works(queue)
        asked = len(iommu.misses)
        assert asked == 2  # the ring's page, and the buffers'
        await iommu.flush()
        assert await works(queue)
        assert len(iommu.misses) > asked
        await queue.stop()
        nursery.cancel_scope.cancel()


async def test_page_that_is_invalidated_before_the_miss_is_answered_is_asked_for_again() -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        iommu.flushes = 3
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        assert await works(queue)
        assert iommu.failures == []
        assert iommu.misses[0] == iommu.misses[1]
        await queue.stop()
        nursery.cancel_scope.cancel()


async def test_address_that_the_guest_does_not_permit_breaks_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(Echo()) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend, answers=False)
        await queue.start()
        with trio.fail_after(60):
            await queue.err.wait()
        assert "the guest's IOMMU maps nothing at" in caplog.text
        await until(lambda: iommu.failures)
        assert [failure.iova for failure in iommu.failures] == iommu.misses
        nursery.cancel_scope.cancel()


async def test_address_that_nobody_can_be_asked_for_breaks_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with attached(Echo()) as frontend:
        queue = await translated(frontend)
        await queue.start()
        with trio.fail_after(60):
            await queue.err.wait()
        assert "SET_BACKEND_REQ_FD" in caplog.text


async def test_queue_stops_while_the_front_end_is_asked_for_an_address() -> None:
    """It waits for our reply, so it answers nothing before it has that."""
    device = Echo()
    device.drain_seconds = 3600
    async with attached(device) as frontend, trio.open_nursery() as nursery:
        queue = await translated(frontend)
        await frontend.open_channel(nursery)
        iommu = Iommu(frontend)
        await queue.start()
        frontend.memory.allocate(2 * PAGE)
        await until(lambda: iommu.misses)
        iommu.is_silent = True
        queue.submit([b"ping"], [8])
        await until(lambda: len(iommu.misses) == 2)
        assert await queue.stop() == 0
        nursery.cancel_scope.cancel()


# The dirty log


class Log:
    """A dirty log for the first pages of guest memory, at guest address 0."""

    def __init__(self) -> None:
        self.size = -(-(GUEST + MEMORY_SIZE) // PAGE // 8)
        self.fd = OwnedFd(os.memfd_create("test-log", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), self.size)
        self._view = memoryview(mmap.mmap(self.fd.fileno(), self.size))

    def take(self) -> set[int]:
        """Return the pages of the guest's memory that are marked, counted from its start; clear them."""
        first = GUEST // PAGE // 8
        marked = {
            8 * byte + bit
            for byte, bits in enumerate(self._view[first:])
            for bit in range(8)
            if bits >> bit & 1
        }
        self._view[first:] = bytes(len(self._view) - first)
        return marked

    def close(self) -> None:
        self.fd.close()
        self._view = memoryview(b"")


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.close()


def pages(frontend: Frontend, address: int) -> int:
    return (address - GUEST) // PAGE


async def test_rule_19_writes_are_logged_while_log_all_is_on(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        frontend.memory.allocate(2 * PAGE)
        assert await works(queue)
        assert log.take() == set()

        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        (out,) = queue.submit([b"ping"], [8])
        await queue.wait()
        assert log.take() == {pages(frontend, out.address)}

        await frontend.set_features(frontend.features.without(Feature.LOG_ALL))
        assert await works(queue)
        assert log.take() == set()
        assert await works(queue)


async def test_rule_19_used_ring_is_logged_with_its_flag_at_its_log_address(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        await frontend.request(queue.address(VringAddressFlag.LOG, GUEST + 300 * PAGE))
        (out,) = queue.submit([b"ping"], [8])
        await queue.wait()
        assert log.take() == {pages(frontend, out.address), 300}
        await frontend.request(queue.address())
        assert await works(queue)
        assert 300 not in log.take()


@pytest.mark.parametrize(
    "features",
    [Feature.VERSION_1, Feature.VERSION_1 | Feature.RING_PACKED],
    ids=["split", "packed"],
)
async def test_word_that_tells_the_driver_not_to_kick_is_logged(log: Log, features: Feature) -> None:
    device = Gate()
    async with attached(device) as frontend:
        queue = await frontend.start(features)
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        await frontend.request(queue.address(VringAddressFlag.LOG, GUEST + 300 * PAGE))
        assert log.take() == set()
        queue.submit([b"ping"], [8])
        await until(lambda: device.held)
        assert 300 in log.take()
        device.open.set()
        await queue.wait()


async def test_eventfd_tells_that_the_log_has_changed(log: Log) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        with EventFd.create() as changed:
            await frontend.request(SetLogFd(fds=(changed.dup(),)))
            await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
            assert await works(queue)
            assert changed.take() == 0
            await frontend.set_features(frontend.features | Feature.LOG_ALL)
            assert await works(queue)
            assert changed.take() == 1


async def test_descriptor_for_the_log_that_is_no_eventfd_is_told_and_done_without(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogFd(fds=(OwnedFd(os.open("/dev/zero", os.O_RDONLY)),)))
        await frontend.request(SetLogBase(log.size, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        for _ in range(2):
            assert await works(queue)
    assert caplog.text.count("the descriptor of SET_LOG_FD is not an eventfd: Bad file descriptor") == 1


async def test_log_that_is_too_small_breaks_the_queue(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    async with attached(Echo()) as frontend:
        queue = await frontend.start()
        await frontend.request(SetLogBase(PAGE, 0, fds=(log.fd.dup(),)))
        await frontend.set_features(frontend.features | Feature.LOG_ALL)
        queue.submit([b"ping"], [8])
        with trio.fail_after(60):
            await queue.err.wait()
        assert "outside the dirty log" in caplog.text


async def test_iommu_that_was_not_asked_for_is_refused_with_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class WithoutIommu(Echo):
        ring_features = RING_FEATURES

    async with attached(WithoutIommu()) as frontend:
        await frontend.negotiate()
        frontend.session.negotiation.offered |= Feature.ACCESS_PLATFORM  # QEMU 7.2's rng does not look
        reply = await frontend.try_request(SetFeatures(DEFAULT_FEATURES | Feature.ACCESS_PLATFORM))
        assert reply is not None
        assert reply.failed
    assert "ACCESS_PLATFORM were not offered; start the back-end with --iommu" in caplog.text
