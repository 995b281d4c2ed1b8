"""Whether a process shares a file that it has mapped; here it is our own."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from vhost_user.memory.sharing import is_private

if TYPE_CHECKING:
    from pathlib import Path

SIZE = mmap.PAGESIZE


def test_private_mapping_is_told_from_a_shared_one(tmp_path: Path) -> None:
    path = tmp_path / "a file with a name"
    path.write_bytes(bytes(SIZE))
    for fd in (OwnedFd(os.open(path, os.O_RDWR)), OwnedFd(os.memfd_create("test-memory"))):
        with fd:
            os.ftruncate(fd.fileno(), SIZE)
            status = os.fstat(fd.fileno())
            file = status.st_dev, status.st_ino
            assert not is_private(file, os.getpid())  # nobody has mapped it
            with mmap.mmap(fd.fileno(), SIZE, mmap.MAP_PRIVATE):
                assert is_private(file, os.getpid())
                with mmap.mmap(fd.fileno(), SIZE, mmap.MAP_SHARED):
                    assert not is_private(file, os.getpid())


def test_process_that_cannot_be_looked_at_is_not_blamed() -> None:
    assert not is_private((1, 2), 0)
