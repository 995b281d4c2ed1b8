"""The front-end's guest memory: what is given out never overlaps, and comes back whole."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from protocol.fds import OwnedFd
from protocol.vhost_user import MemoryRegion
from vhost_user.frontend import Memory, OutOfMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.frontend import Block

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


def test_region_is_whole_pages_and_the_file_that_is_shared(memory: Memory) -> None:
    region = memory.create(5000)
    assert region.size == len(region.view) == 2 * PAGE
    region.view[100:105] = b"hello"
    assert os.pread(region.fd.fileno(), 5, 100) == b"hello"


def test_region_may_begin_anywhere_in_a_file(memory: Memory) -> None:
    file = os.memfd_create("file")
    os.ftruncate(file, 4 * PAGE)
    region = memory.create(PAGE, 0x1000_0000, fd=OwnedFd(file), offset=2 * PAGE)
    region.view[0:5] = b"hello"
    assert os.pread(file, 5, 2 * PAGE) == b"hello"
    assert region.describe(0x100) == MemoryRegion(0x1000_0000, PAGE, 0x1000_0100, 2 * PAGE)


def test_regions_do_not_overlap(memory: Memory) -> None:
    first, second = memory.create(PAGE), memory.create(PAGE)
    assert second.guest_address >= first.end
    with pytest.raises(ValueError, match="0x2000 bytes at 0xff000 overlap those at 0x100000"):
        memory.create(2 * PAGE, first.guest_address - PAGE)
    memory.create(PAGE, first.guest_address - PAGE)


def test_view_is_of_the_guest_address(memory: Memory) -> None:
    region = memory.create(PAGE)
    block = memory.put(b"hello")
    assert bytes(memory.view(block.address, 5)) == b"hello"
    assert bytes(region.view[block.address - region.guest_address :][:5]) == b"hello"
    with pytest.raises(ValueError, match="no memory region holds 2 bytes"):
        memory.view(region.end - 1, 2)


def test_memory_comes_from_the_first_region_with_room(memory: Memory) -> None:
    first, second = memory.create(PAGE), memory.create(2 * PAGE)
    assert second.holds(memory.allocate(2 * PAGE).address)
    assert first.holds(memory.allocate(PAGE).address)
    with pytest.raises(OutOfMemoryError, match="no memory region has 1 byte left"):
        memory.allocate(1)


def test_block_of_a_removed_region_is_forgotten(memory: Memory) -> None:
    region = memory.create(PAGE)
    block = memory.allocate(PAGE)
    memory.remove(region)
    memory.free(block)
    with pytest.raises(OutOfMemoryError):
        memory.allocate(1)


class Allocations(RuleBasedStateMachine):
    """Blocks are given out and taken back in any order."""

    blocks = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.region = self.memory.create(4 * PAGE)
        self.live: list[Block] = []

    @rule(target=blocks, size=st.integers(1, 3000), align=st.sampled_from([1, 2, 16, 64, PAGE]))
    def allocate(self, size: int, align: int) -> Block | None:
        try:
            block = self.memory.allocate(size, align)
        except OutOfMemoryError:
            return None
        assert len(block) == size
        assert block.address % align == 0
        self.live.append(block)
        return block

    @rule(block=consumes(blocks))
    def free(self, block: Block | None) -> None:
        if block is not None:
            self.live.remove(block)
            self.memory.free(block)

    @invariant()
    def nothing_overlaps(self) -> None:
        runs = sorted((block.address, block.address + len(block)) for block in self.live)
        edges = [self.region.guest_address, *(edge for run in runs for edge in run), self.region.end]
        assert edges == sorted(edges)

    @invariant()
    def all_is_there_when_nothing_is_in_use(self) -> None:
        if not self.live:
            block = self.memory.allocate(4 * PAGE, PAGE)
            self.memory.free(block)

    def teardown(self) -> None:
        self.live.clear()
        self.memory.close()


Allocations.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
TestAllocations = Allocations.TestCase
