"""The front-end against a back-end that is none of ours: QEMU's storage daemon."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from protocol.vhost_user import GetQueueNum, Number, ProtocolFeature
from protocol.virtio.blk import REQUEST_HEADER, SECTOR_SIZE, BlkConfig, RequestStatus, RequestType
from protocol.virtio.features import Feature
from tests.vhost_user.frontend.storage_daemon import SECTORS, content, fill_disk, storage_daemon
from vhost_user import frontend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.frontend import DriverQueue

pytestmark = pytest.mark.qemu

OK = bytes([RequestStatus.OK])


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        fill_disk(Path(name))
        yield Path(name)


def header(kind: RequestType, sector: int) -> bytes:
    return REQUEST_HEADER.pack(kind, 0, sector)


async def read(queue: DriverQueue, sector: int, *, indirect: bool | None = None) -> bytes:
    answer = await queue.request(header(RequestType.IN, sector), SECTOR_SIZE, 1, indirect=indirect)
    assert answer[SECTOR_SIZE:] == OK
    return answer[:SECTOR_SIZE]


async def test_disk_says_what_it_is(directory: Path) -> None:
    async with storage_daemon(directory, num_queues=3), frontend.connect(directory / "backend") as front:
        await front.negotiate()
        assert front.num_queues == 3
        assert await front.ask(GetQueueNum()) == Number(3)
        config = BlkConfig.decode((await front.get_config(60)).ljust(100, b"\0"))
        assert (config.capacity, config.num_queues) == (SECTORS, 3)


@pytest.mark.parametrize(
    "features", [Feature.NONE, Feature.EVENT_IDX, Feature.INDIRECT_DESC | Feature.EVENT_IDX]
)
async def test_disk_is_read_and_written(directory: Path, features: Feature) -> None:
    async with storage_daemon(directory), frontend.connect(directory / "backend") as front:
        await front.negotiate(Feature.VERSION_1 | features)
        queue = await front.start_queue()
        for sector in (0, 1, SECTORS - 1):
            assert await read(queue, sector) == content(sector)
        data = os.urandom(3 * SECTOR_SIZE)
        assert await queue.request(header(RequestType.OUT, 5), data[:700], data[700:], 1) == OK
        assert await queue.request(header(RequestType.FLUSH, 0), 1) == OK
        assert (directory / "disk").read_bytes()[5 * SECTOR_SIZE : 8 * SECTOR_SIZE] == data


async def test_queues_work_beside_each_other(directory: Path) -> None:
    async with storage_daemon(directory, num_queues=4), frontend.connect(directory / "backend") as front:
        await front.negotiate()
        queues = [await front.start_queue(index, size=16) for index in range(4)]
        sectors: list[int] = []

        async def read_some(queue: DriverQueue, first: int) -> None:
            for sector in range(first, SECTORS, 64):
                assert await read(queue, sector) == content(sector)
                sectors.append(sector)

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(read_some, queues[number % 4], number)
    assert sorted(sectors) == list(range(SECTORS))


async def test_queue_goes_on_where_it_was_stopped(directory: Path) -> None:
    async with storage_daemon(directory), frontend.connect(directory / "backend") as front:
        await front.negotiate()
        queue = await front.start_queue(size=4)
        for sector in range(6):
            assert await read(queue, sector) == content(sector)
        assert await front.stop_queue(queue) == 6
        await front.resume_queue(queue)
        assert await read(queue, 7) == content(7)


async def test_driver_begins_anew(directory: Path) -> None:
    async with storage_daemon(directory), frontend.connect(directory / "backend") as front:
        await front.negotiate()
        for features in (Feature.VERSION_1, Feature.VERSION_1 | Feature.EVENT_IDX):
            await front.set_features(features)
            queue = await front.start_queue()
            assert await read(queue, 3) == content(3)
            await front.reset()


async def test_memory_is_added_while_the_queue_runs(directory: Path) -> None:
    async with (
        storage_daemon(directory),
        frontend.connect(directory / "backend", memory_size=1 << 16) as front,
    ):
        await front.negotiate()
        assert ProtocolFeature.CONFIGURE_MEM_SLOTS in front.protocol_features
        queue = await front.start_queue()
        await front.add_memory(1 << 21)
        answer = await queue.request(header(RequestType.IN, 0), 512 * SECTOR_SIZE, 1)
        assert answer == b"".join(map(content, range(512))) + OK


async def test_goes_on_after_a_kill(directory: Path) -> None:
    async with (
        storage_daemon(directory) as first,
        frontend.connect(directory / "backend", resilient=True) as front,
    ):
        await front.negotiate()
        queue = await front.start_queue(size=4)
        for sector in range(6):
            assert await read(queue, sector) == content(sector)
        first.kill()
        await first.wait()
        request = queue.submit(header(RequestType.IN, 9), SECTOR_SIZE, 1)
        async with storage_daemon(directory):
            await front.reconnect()
            assert await queue.wait(request) == content(9) + OK


async def test_pages_are_logged(directory: Path) -> None:
    async with storage_daemon(directory), frontend.connect(directory / "backend") as front:
        await front.negotiate()
        queue = await front.start_queue()
        pages = await front.start_log()
        try:
            await read(queue, 0)
            assert queue.parts.device.address // 4096 in pages.pages()
        finally:
            pages.close()
