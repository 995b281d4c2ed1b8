"""The dirty log: a bit for each page of 4096 bytes that was written."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost_user.memory.layout import PAGE, A, C, file_of
from vhost_user.memory.dirty_log import DirtyLog, DirtyLogError
from vhost_user.memory.mapping import MappingError

if TYPE_CHECKING:
    from protocol.fds import OwnedFd
    from vhost_user.memory.regions import GuestMemory


def log_of(size: int) -> tuple[DirtyLog, OwnedFd]:
    fd = file_of(size)
    return DirtyLog(fd.dup(), size, 0), fd


def pages_in(fd: OwnedFd, offset: int = 0) -> set[int]:
    data = os.pread(fd.fileno(), 1 << 16, offset)
    return {8 * place + bit for place, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


@given(writes=st.lists(st.tuples(st.integers(0, 60 * PAGE), st.integers(0, 3 * PAGE)), max_size=6))
def test_rule_19_pages_of_4096_bytes(writes: list[tuple[int, int]]) -> None:
    log, fd = log_of(8)
    for address, length in writes:
        log.mark(address, length)
    assert pages_in(fd) == {
        page
        for address, length in writes
        if length
        for page in range(address >> 12, (address + length + 4095) >> 12)
    }
    fd.close()


def test_rule_19_the_log_begins_at_its_offset() -> None:
    fd = file_of(2 * PAGE)
    log = DirtyLog(fd.dup(), 100, PAGE + 8)
    log.mark(PAGE, 1)
    assert pages_in(fd, PAGE + 8) == {1}
    fd.close()


@pytest.mark.parametrize(("address", "length"), [(64 * PAGE, 1), (63 * PAGE, PAGE + 1), (1 << 60, 1)])
def test_rule_19_nothing_is_written_beyond_the_log(address: int, length: int) -> None:
    fd = file_of(PAGE)
    log = DirtyLog(fd.dup(), 8, 0)
    with pytest.raises(DirtyLogError, match="are outside the dirty log of 8 bytes"):
        log.mark(address, length)
    assert pages_in(fd) == set()
    fd.close()
    del log
    gc.collect()


def test_rule_19_data_is_logged_by_guest_address(memory: GuestMemory) -> None:
    """Also where the region has gone before the request was completed."""
    memory.set_table([(A, file_of(A.size)), (C, file_of(C.size))])
    views = [*memory.translate(A.guest_address + PAGE - 1, 2, write=True)]
    views += memory.translate(C.guest_address, 1, write=True)
    memory.set_table([])
    memory.mark_written(views)  # not logged: VHOST_F_LOG_ALL is off
    memory.log, fd = log_of(1 << 10)
    memory.mark_written(views)
    assert pages_in(fd) == {A.guest_address // PAGE, A.guest_address // PAGE + 1, C.guest_address // PAGE}
    memory.log = None
    fd.close()


def test_log_larger_than_its_file() -> None:
    fd = file_of(PAGE)
    with pytest.raises(MappingError, match="8192 bytes at 0x0 reach past the end of a file of 4096"):
        DirtyLog(fd, 2 * PAGE, 0)
    assert fd.closed
