"""The blk device beside its requests: configuration, cache mode, size, faults, command line."""

from __future__ import annotations

import contextlib
import os
import threading
from contextlib import closing
from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import GetInflightFd, Inflight, ProtocolFeature, SetInflightFd
from protocol.virtio.blk import (
    CONFIG_SIZE,
    REQUEST_HEADER,
    WRITEBACK_OFFSET,
    BlkConfig,
    BlkFeature,
    RequestStatus,
)
from protocol.virtio.features import Feature
from tests.vhost_user.devices.blk import chains as driver
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES, attached
from vhost_user import ConfigFlag, RefusedError
from vhost_user.devices.blk.device import Blk
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.faults import FaultFile, parse_fault
from vhost_user.devices.blk.file import FileDisk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from tests.vhost_user.devices.blk.chains import FakeChain
    from vhost_user import Virtqueue

SECTORS = 64
OK, IOERR, UNSUPP = RequestStatus
SECONDS = 60
REQUESTS = 40
"""Several batches: more than there are threads for."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 2 * SECTORS)
    return path


@pytest.fixture
def blk(image: Path) -> Iterator[Blk]:
    with closing(Blk(open_disk(str(image)), num_queues=4, queue_size=32)) as blk:
        blk.reset()
        yield blk


def content(image: Path) -> bytes:
    return image.read_bytes()


def config(blk: Blk) -> BlkConfig:
    return BlkConfig.decode(blk.read_config(0, CONFIG_SIZE))


def set_writeback(blk: Blk, value: int) -> None:
    blk.write_config(WRITEBACK_OFFSET, bytes([value]), ConfigFlag(0))


class FakeQueue:
    """A queue that hands out what the test submits, one batch each time."""

    features = DEFAULT_FEATURES

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[list["FakeChain"]](100)
        self._stopping: set[trio.CancelScope] = set()
        self._stopped = False

    def submit(self, *chains: FakeChain) -> None:
        self._send.send_nowait([*chains])

    def stop(self) -> None:
        self._stopped = True
        self._send.close()
        for scope in self._stopping:
            scope.cancel()

    async def batches(self, limit: int) -> AsyncIterator[list[FakeChain]]:
        async for batch in self._receive:
            assert len(batch) <= limit
            yield batch

    def flush(self) -> None:
        """Publish nothing: what chains were completed with can be seen in them."""

    @contextlib.contextmanager
    def until_stop(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            self._stopping.add(scope)
            if self._stopped:
                scope.cancel()
            yield scope
            self._stopping.discard(scope)


@contextlib.asynccontextmanager
async def running(blk: Blk) -> AsyncIterator[FakeQueue]:
    """Serve a queue; stop it when the block ends, and wait for the device."""
    queue = FakeQueue()
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blk.run_queue, cast("Virtqueue", queue))
            yield queue
            queue.stop()


async def test_batch_is_served_whatever_is_in_it(blk: Blk, image: Path) -> None:
    blk.negotiated(Feature(blk.features))
    chains = [
        driver.read(1, 512),
        driver.flush(),
        driver.write(2, b"x" * 512),
        driver.get_id(),
        driver.read(0, 511),
    ]
    async with running(blk) as queue:
        queue.submit(*chains)
    assert [chain.status for chain in chains] == [OK, OK, OK, OK, IOERR]
    assert [chain.written for chain in chains] == [513, 1, 1, 21, 512]
    assert content(image)[1024:1536] == b"x" * 512


async def test_more_slow_requests_than_threads(blk: Blk) -> None:
    blk.negotiated(Feature.NONE)  # so every write goes to the medium
    chains = [driver.write(number, bytes([number]) * 512) for number in range(16)]
    async with running(blk) as queue:
        queue.submit(*chains)
    assert {chain.status for chain in chains} == {OK}


def test_configuration_says_what_the_disk_and_the_options_are(blk: Blk) -> None:
    assert config(blk) == BlkConfig(
        capacity=SECTORS,
        seg_max=30,
        blk_size=512,
        physical_block_exp=3,
        writeback=1,
        num_queues=4,
        max_discard_sectors=1 << 21,
        max_discard_seg=32,
        discard_sector_alignment=1,
        max_write_zeroes_sectors=1 << 17,
        max_write_zeroes_seg=32,
        write_zeroes_may_unmap=1,
    )
    assert blk.read_config(20, 4) == (512).to_bytes(4, "little")


def test_sector_size_is_the_disk_s_whatever_the_host_s(image: Path) -> None:
    with closing(Blk(open_disk(str(image), logical_block_size=4096))) as blk:
        now = config(blk)
    assert (now.capacity, now.blk_size, now.physical_block_exp) == (SECTORS, 4096, 0)
    assert now.discard_sector_alignment == 8
    with closing(Blk(open_disk(str(image), logical_block_size=1024))) as blk:
        assert (config(blk).blk_size, config(blk).physical_block_exp) == (1024, 2)


def test_rule_22_configuration_space_can_be_asked_for(blk: Blk) -> None:
    """QEMU's blk does not start without it."""
    assert ProtocolFeature.CONFIG in blk.offered_protocol_features


def test_offer(image: Path) -> None:
    def offer(*, read_only: bool, num_queues: int) -> BlkFeature:
        with closing(Blk(open_disk(str(image), read_only=read_only), num_queues=num_queues)) as blk:
            return BlkFeature(blk.features)

    always = (
        BlkFeature.SEG_MAX
        | BlkFeature.BLK_SIZE
        | BlkFeature.FLUSH
        | BlkFeature.TOPOLOGY
        | BlkFeature.CONFIG_WCE
    )
    writing = BlkFeature.DISCARD | BlkFeature.WRITE_ZEROES
    assert offer(read_only=False, num_queues=1) == always | writing
    assert offer(read_only=False, num_queues=2) == always | writing | BlkFeature.MQ
    assert offer(read_only=True, num_queues=1) == always | BlkFeature.RO


@pytest.mark.parametrize(
    ("features", "asked", "writeback"),
    [
        (BlkFeature.FLUSH, 1, 1),
        (BlkFeature.FLUSH, 0, 1),
        (BlkFeature.FLUSH | BlkFeature.CONFIG_WCE, 1, 1),
        (BlkFeature.FLUSH | BlkFeature.CONFIG_WCE, 0, 0),
        (BlkFeature.CONFIG_WCE, 1, 0),
        (BlkFeature.NONE, 1, 0),
    ],
)
def test_cache_mode_follows_what_the_driver_turned_on(
    blk: Blk, features: BlkFeature, asked: int, writeback: int
) -> None:
    """In either order: after a migration the mode comes before the features (virtio 1.3, section 5.2.6.2)."""
    blk.negotiated(Feature(features) | Feature.VERSION_1)
    set_writeback(blk, asked)
    assert config(blk).writeback == writeback
    blk.reset()
    set_writeback(blk, asked)
    blk.negotiated(Feature(features) | Feature.VERSION_1)
    assert config(blk).writeback == writeback


def test_reset_brings_write_back_again(blk: Blk) -> None:
    blk.negotiated(Feature(blk.features))
    set_writeback(blk, 0)
    blk.reset()
    blk.negotiated(Feature(blk.features))
    assert config(blk).writeback == 1


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b"\1"), (32, b"\2"), (32, b"\1\0"), (31, b"\0\1"), (32, b"")]
)
def test_nothing_else_can_be_configured(blk: Blk, offset: int, data: bytes) -> None:
    before = config(blk)
    with pytest.raises(RefusedError, match="writeback alone, at 32, can be changed to 0 or 1"):
        blk.write_config(offset, data, ConfigFlag(0))
    assert config(blk) == before


def test_driver_is_told_of_another_size_once(blk: Blk, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(blk, "notify_config_changed", lambda: told.append(config(blk).capacity))
    blk.look()
    os.truncate(image, 2 * SECTORS * 512)
    blk.look()
    blk.look()
    os.truncate(image, 512)
    blk.look()
    assert told == [2 * SECTORS, 1]


async def test_file_of_faults_is_looked_at_while_a_front_end_is_there(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "faults"
    path.write_text("")
    with closing(Blk(open_disk(str(image)), fault_file=FaultFile(str(path)))) as blk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blk.run)
            await wait_all_tasks_blocked()
            path.write_text("any:stuck\n")
            with trio.fail_after(SECONDS):
                await blk.faults.changed()
            nursery.cancel_scope.cancel()
        assert len(blk.faults) == 1


async def test_request_is_answered_as_the_rule_says(blk: Blk, image: Path) -> None:
    blk.faults.set([parse_fault("read:lba=3:error"), parse_fault("write:unsupported")])
    before = content(image)
    chains = [driver.read(3, 512), driver.read(4, 512), driver.write(4, b"x" * 512), driver.read(0, 511)]
    async with running(blk) as queue:
        queue.submit(*chains)
    assert [chain.status for chain in chains] == [IOERR, OK, UNSUPP, IOERR]
    assert chains[0].data == bytes(512)
    assert content(image) == before


async def test_late_request_does_not_hold_up_the_others(blk: Blk) -> None:
    blk.faults.set([parse_fault("read:lba=0:latency=1000s"), parse_fault("read:lba=1:latency=10ms")])
    late, soon, other = (driver.read(sector, 512) for sector in range(3))
    async with running(blk) as queue:
        queue.submit(late, soon, other)
        with trio.fail_after(SECONDS):
            await other.is_completed.wait()
            await soon.is_completed.wait()
        assert (late.completed, soon.written, other.written) == (False, 513, 513)
    assert late.written == 513  # a queue that stops waits for no time to pass


async def test_stuck_request_goes_on_when_its_rule_is_gone(blk: Blk) -> None:
    blk.faults.set([parse_fault("read:stuck")])
    stuck = driver.read(1, 512)
    async with running(blk) as queue:
        queue.submit(stuck)
        await wait_all_tasks_blocked()
        blk.faults.set([parse_fault("read:stuck"), parse_fault("write:error")])
        await wait_all_tasks_blocked()
        assert not stuck.completed
        blk.faults.set([])
        with trio.fail_after(SECONDS):
            await stuck.is_completed.wait()
        assert stuck.status is OK


async def test_queue_that_stops_waits_for_a_slow_disk_and_says_so(
    mock_clock: MockClock, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What is not done when a queue stops for a migration is lost: nobody knows of it where the guest goes.
    may_read, read = threading.Event(), FileDisk.read

    def read_now(*_: object) -> int:
        raise BlockingIOError

    def read_late(self: FileDisk, buffers: Sequence[memoryview], offset: int) -> None:
        assert may_read.wait(SECONDS)
        read(self, buffers, offset)

    monkeypatch.setattr(FileDisk, "direct_file", lambda _: None)
    monkeypatch.setattr(FileDisk, "read_now", read_now)
    monkeypatch.setattr(FileDisk, "read", read_late)
    with closing(Blk(open_disk(str(image)))) as blk:
        async with attached(blk) as frontend:
            queue = await frontend.start(size=128)
            for sector in range(REQUESTS):
                queue.submit([REQUEST_HEADER.pack(0, 0, sector)], [512, 1])
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(queue.stop)
                await wait_all_tasks_blocked()
                mock_clock.jump(5)
                await wait_all_tasks_blocked()
                assert (
                    f"queue 0 is to stop, and waits for {REQUESTS} requests under way, until they"
                    " are done, for at most 60 s" in caplog.text
                )
                may_read.set()
            assert len(queue.collect()) == REQUESTS


@pytest.mark.parametrize("features", [Feature.NONE, Feature.RING_PACKED])
async def test_stuck_request_is_done_when_its_guest_is_migrated(blk: Blk, features: Feature) -> None:
    """Nothing tells the next back-end of it, and its place in the ring is not where that goes on."""
    blk.faults.set([parse_fault("read:lba=1:stuck")])
    async with attached(blk) as frontend:
        queue = await frontend.start(DEFAULT_FEATURES | features)
        queue.submit([REQUEST_HEADER.pack(0, 0, 1)], [512, 1])
        assert await queue.exchange([REQUEST_HEADER.pack(0, 0, 2)], [512, 1])
        await frontend.set_features(DEFAULT_FEATURES | features | Feature.LOG_ALL | Feature.PROTOCOL_FEATURES)
        await queue.stop()
        assert [status for _, status in queue.collect()] == [bytes([OK])]


async def test_stuck_request_of_a_guest_that_is_paused_is_decided_about_again(blk: Blk) -> None:
    blk.faults.set([parse_fault("read:lba=1:stuck")])
    async with attached(blk) as frontend:
        await frontend.negotiate()
        await frontend.share_memory()
        buffer = await frontend.ask(Inflight, GetInflightFd(0, 0, 1, 16))
        await frontend.request(SetInflightFd(buffer.mmap_size, 0, 1, 16, fds=buffer.take_fds()))
        queue = frontend.queue()
        await queue.start()
        queue.submit([REQUEST_HEADER.pack(0, 0, 1)], [512, 1])
        assert await queue.exchange([REQUEST_HEADER.pack(0, 0, 2)], [512, 1])
        for _ in range(2):
            await queue.stop()
            await queue.start()
            await wait_all_tasks_blocked()
            assert queue.collect() == []
        blk.faults.set([])
        ((_, status),) = await queue.wait()
        assert status == bytes([OK])


@pytest.mark.parametrize(
    ("size", "features", "told"),
    [
        (16, Feature.VERSION_1, True),
        (32, Feature.VERSION_1, False),
        (16, Feature.VERSION_1 | Feature.INDIRECT_DESC, False),
    ],
)
async def test_ring_too_short_for_the_longest_request_is_told(
    blk: Blk, size: int, features: Feature, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver would wait for ever for room. A disk for rings of 32 has requests of 30 segments."""
    async with attached(blk) as frontend:
        await frontend.negotiate(features | BlkFeature.SEG_MAX)
        await frontend.share_memory()
        queue = frontend.queue(size=size)
        for _ in range(2):
            await queue.start()
            assert await queue.exchange([REQUEST_HEADER.pack(0, 0, 2)], [512, 1])
            await queue.stop()
    assert caplog.text.count("start the back-end with --queue-size 16, or QEMU") == told


async def test_queue_that_stops_takes_stuck_requests_back_and_waits_for_no_late_one(blk: Blk) -> None:
    blk.faults.set([parse_fault("read:stuck"), parse_fault("write:latency=1000s")])
    stuck, late = driver.read(1, 512), driver.write(1, b"x" * 512)
    async with running(blk) as queue:
        queue.submit(stuck, late)
        await wait_all_tasks_blocked()
    assert (stuck.completed, stuck.is_put_back) == (False, True)
    assert (late.status, late.is_put_back) == (OK, False)
