"""Reads of a batch go to the disk's file, or to the disk, whichever speaks for it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from protocol.fds import OwnedFd
from protocol.virtio.blk import RequestStatus
from tests.vhost_user.devices.blk import chains as driver
from vhost_user.devices.blk.file import FileDisk
from vhost_user.devices.blk.transfer import transfer_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vhost_user.ring import Chain

CONTENT = bytes(range(256)) * 8


class Queue:
    """Completes at once."""

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        for chain, written in done:
            chain.complete(written)

    def flush(self) -> None:
        pass


def inverted(done: int, buffers: Sequence[memoryview]) -> int:
    for buffer in buffers:
        buffer[:] = bytes(byte ^ 0xFF for byte in buffer)
    return done


class Inverted(FileDisk):
    """A disk of a user's own: it has other bytes than its file."""

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        return inverted(super().read_now(buffers, offset, length), buffers)


class Wrapper:
    """One that passes on all but its reads."""

    def __init__(self, disk: FileDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def read_now(self, buffers: Sequence[memoryview], offset: int, length: int) -> int:
        return inverted(self._disk.read_now(buffers, offset, length), buffers)


class DirectAgain(Inverted):
    """One that says that its file has the bytes, after all."""

    def direct_file(self) -> tuple[int, int] | None:
        return FileDisk.direct_file(self)


@pytest.fixture
def fd(tmp_path: Path) -> OwnedFd:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return OwnedFd(os.open(path, os.O_RDWR | os.O_CLOEXEC))


@pytest.mark.parametrize(
    ("kind", "is_inverted"), [(FileDisk, False), (Inverted, True), (Wrapper, True), (DirectAgain, False)]
)
def test_read_is_what_the_disk_says_it_is(fd: OwnedFd, kind: type, *, is_inverted: bool) -> None:
    inner = FileDisk(fd) if kind is Wrapper else kind(fd)
    disk = kind(inner) if kind is Wrapper else inner
    with closing(inner):
        request = driver.read(1, 512)
        assert transfer_now(disk, [request], Queue(), may_write=True) == []
        expected = CONTENT[512:1024]
        assert request.data == (bytes(byte ^ 0xFF for byte in expected) if is_inverted else expected)
        assert request.status is RequestStatus.OK
