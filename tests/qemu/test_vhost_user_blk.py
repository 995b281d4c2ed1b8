"""vhost-user-blk behind QEMU: the test is the driver, and reads the file as well."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING

import pytest
import trio

from tests.qemu.blk_driver import (
    BLK_SIZE,
    BLK_SIZE_FIELD,
    CAPACITY,
    CONFIG_WCE,
    CONTENT,
    DISCARD,
    DISCARD_COMMAND,
    FLUSH,
    FLUSH_COMMAND,
    GET_ID,
    IN,
    IOERR,
    MQ,
    NUM_QUEUES,
    OK,
    OUT,
    RO,
    SECTORS,
    SEG_MAX,
    TOPOLOGY,
    TOPOLOGY_FIELD,
    UNSUPP,
    WRITE_ZEROES,
    WRITE_ZEROES_COMMAND,
    WRITEBACK,
    config,
    header,
    read,
    ready,
    start,
    write,
)
from tests.qemu.virtio_structures import DEVICE
from tests.rig.qemu.msix import message
from tests.rig.qemu.qemu import QemuStartError

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.qemu


async def test_guest_reads_and_writes_the_file(directory: Path) -> None:
    async with start(directory) as setup:
        queue = await ready(setup.guest)
        assert await read(queue, 3, 4096) == CONTENT[3 * 512 :][:4096]
        assert await setup.guest.msix.wait(0) == message(0)
        assert await write(queue, 7, b"x" * 1024) == OK
        assert (
            await read(queue, 6, 2048)
            == CONTENT[6 * 512 : 7 * 512] + b"x" * 1024 + CONTENT[9 * 512 : 10 * 512]
        )
        expected = CONTENT[: 7 * 512] + b"x" * 1024 + CONTENT[9 * 512 :]
        assert setup.image.read_bytes() == expected


async def test_driver_learns_what_the_disk_is_like(directory: Path) -> None:
    options = ("--num-queues", "2", "--queue-size", "64")
    async with start(directory, *options, properties=",num-queues=2,queue-size=64") as setup:
        guest = setup.guest
        offered = await guest.offered()
        assert not offered & RO
        for feature in (BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES):
            assert offered & feature, f"{feature:#x}"
        assert await config(guest, CAPACITY, 8) == SECTORS
        assert await config(guest, SEG_MAX, 4) == 62
        assert await config(guest, BLK_SIZE_FIELD, 4) == 512
        assert await config(guest, TOPOLOGY_FIELD, 1) == 3
        assert await config(guest, WRITEBACK, 1) == 1
        assert await config(guest, NUM_QUEUES, 2) == 2


@pytest.mark.parametrize("cache", ["none", "writeback"])
async def test_sector_size_is_what_was_asked_for(directory: Path, cache: str) -> None:
    """Requests are in sectors of 512 bytes all the same (virtio 1.3, section 5.2.4)."""
    async with start(directory, "--logical-block-size", "4096", "--cache", cache) as setup:
        assert await config(setup.guest, BLK_SIZE_FIELD, 4) == 4096
        assert await config(setup.guest, TOPOLOGY_FIELD, 1) == 0
        assert await config(setup.guest, CAPACITY, 8) == SECTORS
        queue = await ready(setup.guest)
        assert await write(queue, 3, b"x" * 1024) == OK
        assert await read(queue, 2, 2048) == CONTENT[1024:1536] + b"x" * 1024 + CONTENT[2560:3072]


async def test_flush_and_get_id(directory: Path) -> None:
    async with start(directory, "--serial", "disk 0001") as setup:
        queue = await ready(setup.guest)
        assert await queue.request([header(FLUSH_COMMAND)], [1]) == [OK]
        assert await queue.request([header(GET_ID)], [20, 1]) == [b"disk 0001".ljust(20, b"\0"), OK]


async def test_disk_has_the_same_serial_of_its_own_each_time(directory: Path) -> None:
    seen = []
    for _ in range(2):
        async with start(directory) as setup:
            queue = await ready(setup.guest)
            data, status = await queue.request([header(GET_ID)], [20, 1])
            assert status == OK
            seen.append(data)
    assert seen[0] == seen[1]
    assert re.fullmatch(rb"qc-[0-9a-f]{16}\0", seen[0])


async def test_discard_and_write_zeroes(directory: Path) -> None:
    async with start(directory) as setup:
        queue = await ready(setup.guest)
        rows = struct.pack("<QIIQII", 8, 8, 0, 1, 2, 1)
        assert await queue.request([header(WRITE_ZEROES_COMMAND), rows], [1]) == [OK]
        expected = bytearray(CONTENT)
        expected[8 * 512 : 16 * 512], expected[512:1536] = bytes(4096), bytes(1024)
        assert setup.image.read_bytes() == expected
        before = setup.image.stat().st_blocks
        rows = struct.pack("<QII", 1024, 1024, 0)
        assert await queue.request([header(DISCARD_COMMAND), rows], [1]) == [OK]
        assert setup.image.read_bytes()[: 1024 * 512] == expected[: 1024 * 512]
        assert setup.image.stat().st_blocks == before - 1024


async def test_wrong_requests_get_errors_and_the_queue_lives(directory: Path) -> None:
    async with start(directory) as setup:
        queue = await ready(setup.guest)
        assert await write(queue, SECTORS, bytes(512)) == IOERR
        assert await queue.request([header(IN)], [511, 1]) == [bytes(511), IOERR]
        assert await queue.request([header(IN), bytes(512)], [1]) == [IOERR]
        assert await queue.request([header(OUT)], [512, 1]) == [bytes(512), IOERR]
        assert await queue.request([header(IN)[:8]], [1]) == [IOERR]
        assert await queue.request([header(99)], [1]) == [UNSUPP]
        assert await queue.request([header(OUT), bytes(512)], []) == []
        assert await queue.request([], [1]) == [IOERR]
        assert await read(queue, 0, 512) == CONTENT[:512]
        assert setup.image.read_bytes() == CONTENT
        said = setup.backend.program.output()
        assert f"{setup.image}: refused: write of 512 bytes at sector {SECTORS}, beyond the end" in said
        assert f"{setup.image}: refused: read at sector 0: 511 bytes of data, no multiple of 512" in said


async def test_each_queue_has_its_requests_and_its_interrupt(directory: Path) -> None:
    async with start(directory, "--num-queues", "4", properties=",num-queues=4") as setup:
        guest = setup.guest
        await guest.negotiate(FLUSH | MQ)
        queues = [await guest.set_up_queue(index, vector=index + 1) for index in range(4)]
        await guest.start()
        requests = [await queue.add([header(IN, 10 * queue.index)], [512, 1]) for queue in queues]
        for queue in queues:
            await queue.kick()
        for queue, request in zip(queues, requests, strict=True):
            used: list[tuple[int, int]] = []
            while not used:  # a back-end that is given another eventfd may interrupt once more
                assert await guest.msix.wait(queue.vector) == message(queue.vector)
                used = await queue.take()
            ((_, length),) = used
            start_ = 5120 * queue.index
            assert await queue.written(request, length) == [CONTENT[start_ : start_ + 512], OK]


async def test_guest_has_a_queue_for_each_processor_without_being_told(directory: Path) -> None:
    async with start(directory, machine=["-smp", "6"]) as setup:
        assert await config(setup.guest, NUM_QUEUES, 2) == 6


async def test_qemu_that_wants_more_queues_than_there_are_says_so(directory: Path) -> None:
    with pytest.raises(QemuStartError, match="maximum number of queues supported by the backend is 2"):
        async with start(directory, "--num-queues", "2", properties=",num-queues=3"):
            pass


async def test_read_only_disk(directory: Path) -> None:
    async with start(directory, "--read-only") as setup:
        offered = await setup.guest.offered()
        assert offered & RO
        assert not offered & (DISCARD | WRITE_ZEROES)
        queue = await ready(setup.guest, RO | FLUSH)
        assert await write(queue, 0, b"x" * 512) == IOERR
        assert await read(queue, 0, 512) == CONTENT[:512]
        assert setup.image.read_bytes() == CONTENT


@pytest.mark.parametrize("sectors", [SECTORS * 2, SECTORS // 2])
async def test_guest_is_told_when_the_disk_gets_another_size(directory: Path, sectors: int) -> None:
    async with start(directory) as setup:
        guest = setup.guest
        await guest.negotiate(FLUSH)
        queue = await guest.set_up_queue()
        await guest.set_config_vector(1)
        await guest.start()
        assert await read(queue, SECTORS - 1, 512) == CONTENT[-512:]
        os.truncate(setup.image, sectors * 512)
        assert await guest.msix.wait(1) == message(1)
        assert await config(guest, CAPACITY, 8) == sectors
        assert await write(queue, sectors - 1, b"z" * 512) == OK
        assert await write(queue, sectors, b"z" * 512) == IOERR
        assert setup.image.stat().st_size == sectors * 512
        assert setup.image.read_bytes()[-512:] == b"z" * 512


async def test_guest_chooses_the_cache_mode(directory: Path) -> None:
    async with start(directory, "-v") as setup:
        guest = setup.guest
        queue = await ready(guest, FLUSH | CONFIG_WCE)
        await guest.qtest.write(guest.regions[DEVICE] + WRITEBACK, 0, 1)
        assert await config(guest, WRITEBACK, 1) == 0
        assert any("SET_CONFIG" in request for request in setup.backend.requests())
        assert await write(queue, 0, b"x" * 512) == OK
        assert setup.image.read_bytes()[:512] == b"x" * 512


async def test_disk_around_the_page_cache(directory: Path) -> None:
    async with start(directory, "--cache", "none") as setup:
        queue = await ready(setup.guest)
        assert await read(queue, 1, 1024) == CONTENT[512:1536]
        requests = [await queue.add([header(OUT, 8 * n), bytes([n]) * 4096], [1]) for n in range(16)]
        await queue.kick()
        used: dict[int, int] = {}
        while len(used) < len(requests):
            used.update(await queue.wait())
        assert used == {request.head: 1 for request in requests}
        expected = b"".join(bytes([n]) * 4096 for n in range(16))
        assert setup.image.read_bytes() == expected + CONTENT[len(expected) :]


async def test_disk_fails_where_it_is_told_to(directory: Path) -> None:
    options = ("--fault", "read:lba=100-200:error", "--fault", "flush:times=1:unsupported")
    async with start(directory, *options) as setup:
        queue = await ready(setup.guest)
        assert await queue.request([header(IN, 99)], [1024, 1]) == [bytes(1024), IOERR]
        assert await read(queue, 99, 512) == CONTENT[99 * 512 :][:512]
        assert await write(queue, 100, b"x" * 512) == OK
        assert await queue.request([header(FLUSH_COMMAND)], [1]) == [UNSUPP]
        assert await queue.request([header(FLUSH_COMMAND)], [1]) == [OK]


async def test_faults_change_while_the_disk_is_in_use(directory: Path) -> None:
    faults = directory / "faults"
    faults.write_text("read:stuck\n")
    async with start(directory, "--fault-file", str(faults)) as setup:
        queue = await ready(setup.guest)
        stuck = await queue.add([header(IN, 5)], [512, 1])
        await queue.kick()
        assert await write(queue, 0, b"x" * 512) == OK
        assert await queue.take() == []
        faults.write_text("")
        ((head, length),) = await queue.wait()
        assert head == stuck.head
        assert await queue.written(stuck, length) == [CONTENT[5 * 512 : 6 * 512], OK]


async def test_driver_resets_a_device_that_is_stuck(directory: Path) -> None:
    """And drives it anew: this is how drivers recover."""
    async with start(directory, "--fault", "read:stuck") as setup:
        guest = setup.guest
        for _ in range(3):
            queue = await ready(guest)
            for sector in range(8):
                await queue.add([header(IN, sector)], [512, 1])
            await queue.kick()
            assert await write(queue, 0, b"x" * 512) == OK
            with trio.fail_after(60):
                await guest.reset()
            assert await queue.take() == []
