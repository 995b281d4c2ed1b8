"""Devices that do requests in threads, in a process that can start none: they work on, and say so once."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, cast

from protocol.io.threads import NO_THREAD
from protocol.virtio.blk import REQUEST_HEADER, BlkFeature, RequestStatus, RequestType
from protocol.virtio.gpio import Direction
from tests.rig.programs.limits import threads_refused
from tests.vhost_user.devices.gpio.driver import Driver
from tests.vhost_user.devices.gpio.test_host import KernelChip, host_chip
from tests.vhost_user.devices.i2c.kernel import Kernel
from vhost_user.devices.blk import Blk
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.parallel_reads import ParallelReader
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.i2c.chips.chip import I2cMessage
from vhost_user.devices.i2c.host import HostBus
from vhost_user.testing import driving

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from protocol.virtio.features import Feature


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert "Traceback" not in caplog.text
    return [record.getMessage() for record in caplog.records if NO_THREAD in record.getMessage()]


async def test_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    flush = REQUEST_HEADER.pack(RequestType.FLUSH, 0, 0)
    with threads_refused(), Blk(open_disk(str(image))) as device:
        async with driving(device, plus=cast("Feature", BlkFeature.FLUSH)) as front:
            queue = await front.start_queue()
            for _ in range(3):
                assert await queue.request(flush, 1) == bytes([RequestStatus.OK])
    assert warnings(caplog) == [f"{image}: requests are done one by one: {NO_THREAD}"]


def test_large_reads_of_a_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"one two ")
    with threads_refused(), closing(ParallelReader(2)) as reader, (tmp_path / "disk").open("rb") as file:
        buffers = [bytearray(4), bytearray(4)]
        reads = [([memoryview(buffer)], 4 * place) for place, buffer in enumerate(buffers)]
        assert list(reader.preadv(file.fileno(), reads, 0)) == [(0, 4), (1, 4)]
    assert buffers == [b"one ", b"two "]


async def test_lines_of_the_host(caplog: pytest.LogCaptureFixture) -> None:
    kernel = KernelChip("reset", "led")
    with threads_refused(), Gpio(host_chip(kernel)) as device:
        async with driving(device) as front:
            driver = await Driver.start(front)
            for line in (0, 1):
                await driver.use(line, Direction.IN)
                assert await driver.get(line) == 0
    assert warnings(caplog) == [f"{kernel.path}: all else waits for each request: {NO_THREAD}"]


async def test_bus_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Kernel().play(monkeypatch)
    (tmp_path / "i2c-7").touch()
    with threads_refused(), closing(HostBus(7, [0x48], tmp_path)) as bus:
        for _ in range(2):
            assert await bus.transfer([I2cMessage(0x48, read=True, size=1)]) == 1
    assert warnings(caplog) == [f"{tmp_path}/i2c-7: all else waits for each transfer: {NO_THREAD}"]
