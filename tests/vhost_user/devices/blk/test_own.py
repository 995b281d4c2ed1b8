"""Users' own disks and fault rules go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from protocol.virtio.blk import REQUEST_HEADER, RequestStatus, RequestType
from vhost_user.devices.blk.device import Blk
from vhost_user.devices.blk.disk import open_disk
from vhost_user.devices.blk.faults import Action, Fault
from vhost_user.frontend import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from pathlib import Path

    from vhost_user.devices.blk.requests import Request
from tests.vhost_user.devices.own_code import Mistake


class OwnDisk:
    """Around a file; raises where it is told to."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self._file = open_disk(str(path))
        self.where = ""

    def direct_file(self) -> None:
        """It is to be asked itself."""

    def __getattr__(self, name: str) -> Any:
        if name == self.where:
            raise Mistake(f"in {name}")
        return getattr(self._file, name)


class OwnFault(Fault):
    """A rule that goes wrong."""

    def concerns(self, request: Request) -> bool:
        raise Mistake("in concerns")


@pytest.fixture
def disk(tmp_path: Path) -> OwnDisk:
    return OwnDisk(tmp_path / "disk")


@pytest.mark.parametrize("where", ["read_now", "size"])
async def test_request_that_the_disk_fails_at(
    where: str, disk: OwnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    header = REQUEST_HEADER.pack(RequestType.IN, 0, 0)
    with Blk(disk) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            disk.where = where
            answers = [await queue.request(header, 512, 1) for _ in range(5)]
            disk.where = ""
            assert (await queue.request(header, 512, 1))[-1] == RequestStatus.OK
    expected = RequestStatus.OK if where == "read_now" else RequestStatus.IOERR  # read() does it
    assert {answer[-1] for answer in answers} == {expected}
    assert f"Mistake: in {where}" in caplog.text


async def test_request_that_the_disk_fails_at_in_a_thread(
    disk: OwnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with Blk(disk) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            disk.where = "flush"
            for _ in range(20):
                answer = await queue.request(REQUEST_HEADER.pack(RequestType.FLUSH, 0, 0), 1)
                assert answer == bytes([RequestStatus.IOERR])
            assert (await queue.request(REQUEST_HEADER.pack(RequestType.IN, 0, 0), 513))[
                -1
            ] == RequestStatus.OK
    assert caplog.messages == [
        "the disk OwnDisk failed: the guest's request gets an error. This is logged once."
    ]


async def test_disk_that_cannot_be_asked(disk: OwnDisk, caplog: pytest.LogCaptureFixture) -> None:
    with Blk(disk) as device:
        async with driving(device) as front:
            disk.where = "block_sizes"
            with pytest.raises(BackendError):
                await front.get_config(60)
            disk.where = "measure"
            device.look()
            disk.where = ""
            assert await front.get_config(8) == struct.pack("<Q", 8)
            disk.where = "close"
    disk.where = ""
    disk.close()
    for name in ("block_sizes", "measure", "close"):
        assert f"Mistake: in {name}" in caplog.text


async def test_fault_that_goes_wrong(disk: OwnDisk, caplog: pytest.LogCaptureFixture) -> None:
    with Blk(disk, faults=[OwnFault(Action.STUCK)]) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            header = REQUEST_HEADER.pack(RequestType.IN, 0, 0)
            assert (await queue.request(header, 512, 1))[-1] == RequestStatus.IOERR
            device.faults.set([])
            assert (await queue.request(header, 512, 1))[-1] == RequestStatus.OK
    assert "Mistake: in concerns" in caplog.text
