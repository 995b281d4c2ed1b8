"""Drivers that break the ring: each rule that a device checks, by name."""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import TYPE_CHECKING

import pytest

from protocol.virtio import split
from protocol.virtio.features import Feature
from tests.vhost_user.chains import completed
from tests.vhost_user.ring.raw import (
    DATA,
    INDIRECT,
    NEXT,
    SIZE,
    TABLE,
    WRITE,
    RawPacked,
    RawSplit,
)
from tests.vhost_user.ring.rig import GUEST, MEMORY_SIZE, MODERN, TABLES, USER, Rig, shared_file, work
from vhost_user.memory import Region
from vhost_user.ring import BrokenRingError, PackedRing, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Iterator

LAST = GUEST + MEMORY_SIZE


@pytest.fixture
def raw() -> Iterator[RawSplit]:
    raw = RawSplit()
    yield raw
    raw.close()


@pytest.fixture
def packed() -> Iterator[RawPacked]:
    raw = RawPacked()
    yield raw
    raw.close()


def broken(raw: RawSplit | RawPacked, reason: str) -> None:
    """Assert that a device finds the ring broken, for a reason, and again when it looks again."""
    ring = raw.start()
    for _ in range(2):
        with pytest.raises(BrokenRingError, match=reason) as caught:
            ring.pop(SIZE)
        assert "\n" not in str(caught.value)


# Split rings


def test_index_jump(raw: RawSplit) -> None:
    raw.set_index(SIZE + 1)
    broken(raw, "available index is 9 beyond 0, with 0 of 8")


def test_index_going_back(raw: RawSplit) -> None:
    raw.set_index(-1)
    broken(raw, "available index is 65535 beyond 0")


def test_more_chains_than_descriptors(raw: RawSplit) -> None:
    raw.descriptors((DATA, 16, 0, 0))
    ring = raw.start()
    raw.offer(*[0] * SIZE)
    assert len(ring.pop(SIZE)) == SIZE
    raw.offer(0)
    with pytest.raises(BrokenRingError, match="1 beyond 8, with 8 of 8 descriptors in use"):
        ring.pop(SIZE)


def test_head_out_of_range(raw: RawSplit) -> None:
    raw.offer(SIZE)
    broken(raw, "descriptor 8 is outside its table")


def test_next_out_of_range(raw: RawSplit) -> None:
    raw.descriptors((DATA, 16, NEXT, 0xFFFF))
    raw.offer(0)
    broken(raw, "descriptor 65535 is outside its table")


@pytest.mark.parametrize("length", [1, 2, SIZE])
def test_loop(raw: RawSplit, length: int) -> None:
    raw.descriptors(*[(DATA, 16, NEXT, (place + 1) % length) for place in range(length)])
    raw.offer(0)
    broken(raw, "a chain has more descriptors than its table: a loop")


def test_readable_after_writable(raw: RawSplit) -> None:
    raw.descriptors((DATA, 16, WRITE | NEXT, 1), (DATA, 16, 0, 0))
    raw.offer(0)
    broken(raw, "a readable descriptor follows a writable one")


@pytest.mark.parametrize("flags", [0, WRITE])
def test_zero_length(raw: RawSplit, flags: int) -> None:
    raw.descriptors((DATA, 0, flags, 0))
    raw.offer(0)
    broken(raw, "zero length")


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0, 1),
        (GUEST - 1, 1),
        (GUEST - 1, 2),
        (LAST, 1),
        (LAST - 1, 2),
        (GUEST, 0xFFFF_FFFF),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 0xFFFF_FFFF),
        ((1 << 64) - MEMORY_SIZE, MEMORY_SIZE),
    ],
)
def test_buffer_outside_memory(raw: RawSplit, flags: int, address: int, length: int) -> None:
    raw.descriptors((address, length, flags, 0))
    raw.offer(0)
    broken(raw, "a descriptor is outside memory: no memory region holds guest address 0x")


def test_chain_too_long(raw: RawSplit) -> None:
    """4 GiB and more cannot be told of in a used chain."""
    large = 16 << 20
    region = Region(LAST, large, USER + MEMORY_SIZE)
    raw.rig.memory.add(region, shared_file(large))
    raw.indirect(*[(LAST, large, NEXT, place + 1) for place in range(255)], (LAST, large, 0, 0))
    raw.descriptors((TABLE, 16 * 256, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "a chain of more than 4 GiB")


def test_indirect_not_negotiated() -> None:
    raw = RawSplit(int(Feature.VERSION_1))
    raw.indirect((DATA, 16, 0, 0))
    raw.descriptors((TABLE, 16, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "INDIRECT_DESC was not negotiated")
    raw.close()


def test_indirect_in_indirect(raw: RawSplit) -> None:
    raw.indirect((TABLE + 64, 16, INDIRECT, 0))
    raw.descriptors((TABLE, 16, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "an indirect table within an indirect table")


def test_indirect_in_itself(raw: RawSplit) -> None:
    raw.indirect((TABLE, 16, INDIRECT, 0))
    raw.descriptors((TABLE, 16, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "an indirect table within an indirect table")


def test_indirect_with_next(raw: RawSplit) -> None:
    raw.indirect((DATA, 16, 0, 0))
    raw.descriptors((TABLE, 16, INDIRECT | NEXT, 1), (DATA, 16, 0, 0))
    raw.offer(0)
    broken(raw, "an indirect descriptor that has a next one")


@pytest.mark.parametrize("length", [0, 1, 15, 17, 40])
def test_indirect_table_of_odd_length(raw: RawSplit, length: int) -> None:
    raw.indirect((DATA, 16, 0, 0))
    raw.descriptors((TABLE, length, INDIRECT, 0))
    raw.offer(0)
    broken(raw, f"an indirect table of {length} bytes, which must be a multiple of 16")


def test_indirect_table_too_large(raw: RawSplit) -> None:
    raw.indirect((DATA, 16, 0, 0))
    raw.descriptors((TABLE, 16 * 1025, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "an indirect table of 16400 bytes; 16384 are possible")


def test_indirect_table_outside_memory(raw: RawSplit) -> None:
    raw.descriptors((LAST - 16, 32, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "outside memory: no memory region holds guest address 0x140100000")


def test_loop_in_indirect_table(raw: RawSplit) -> None:
    raw.indirect((DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0))
    raw.descriptors((TABLE, 32, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "a chain has more descriptors than its table: a loop")


def test_next_outside_indirect_table(raw: RawSplit) -> None:
    """The descriptor is in the ring's table, but not in this one."""
    raw.indirect((DATA, 16, NEXT, 2), (DATA, 16, 0, 0))
    raw.descriptors((TABLE, 32, INDIRECT, 0), (DATA, 16, 0, 0), (DATA, 16, 0, 0))
    raw.offer(0)
    broken(raw, "descriptor 2 is outside its table")


def test_readable_in_indirect_table_after_writable(raw: RawSplit) -> None:
    raw.indirect((DATA, 16, 0, 0))
    raw.descriptors((DATA, 16, WRITE | NEXT, 1), (TABLE, 16, INDIRECT, 0))
    raw.offer(0)
    broken(raw, "a readable descriptor follows a writable one")


def test_head_that_is_in_use_already() -> None:
    raw = RawSplit(tracked=True)
    raw.descriptors((DATA, 16, 0, 0))
    raw.offer(0, 0)
    ring = raw.start()
    assert [chain.head for chain in ring.pop(SIZE)] == [0]
    with pytest.raises(BrokenRingError, match="descriptor 0 was made available again while it is in use"):
        ring.pop(SIZE)
    raw.close()


@pytest.mark.parametrize("size", [0, 3, 12, 65536])
def test_size_that_no_split_ring_has(raw: RawSplit, size: int) -> None:
    with pytest.raises(BrokenRingError, match=f"a split ring of {size}: a power of two up to 32768"):
        SplitRing(raw.rig.memory, RingConfig(size, USER, USER, USER), 0)


@pytest.mark.parametrize("part", ["descriptors", "avail", "used"])
@pytest.mark.parametrize("address", [0, USER - 1, USER + MEMORY_SIZE - 8])
def test_part_of_the_ring_outside_memory(raw: RawSplit, part: str, address: int) -> None:
    places = {"descriptors": USER, "avail": USER, "used": USER, part: address}
    config = RingConfig(SIZE, places["descriptors"], places["avail"], places["used"])
    with pytest.raises(BrokenRingError, match="a part of the ring is outside memory"):
        SplitRing(raw.rig.memory, config, 0)


def test_memory_of_a_running_ring_taken_away(raw: RawSplit) -> None:
    ring = raw.start()
    raw.rig.memory.remove(raw.rig.region)
    for use in (lambda: ring.pop(1), lambda: ring.want_kicks(True), lambda: ring.push([])):
        with pytest.raises(BrokenRingError, match="a part of the ring is outside memory"):
            use()


# Queues from which a device only reads


@pytest.fixture(params=[RawSplit, RawPacked], ids=["split", "packed"])
def either(request: pytest.FixtureRequest) -> Iterator[RawSplit | RawPacked]:
    raw: RawSplit | RawPacked = request.param()
    yield raw
    raw.close()


def test_what_is_called_writable_is_read(either: RawSplit | RawPacked) -> None:
    """As DPDK's driver does with a network frame in an indirect table of a packed ring."""
    either.rig.config = dataclasses.replace(either.rig.config, only_read=True)
    link = 0 if isinstance(either, RawPacked) else NEXT
    either.indirect(
        (DATA, 12, WRITE | link, 1), (DATA + 100, 16, link, 2), (DATA + 200, 20, link, 3), (DATA, 9, WRITE, 0)
    )
    either.descriptors((TABLE, 64, INDIRECT, 0))
    if isinstance(either, RawSplit):
        either.offer(0)
    (chain,) = either.start().pop(SIZE)
    assert [len(view) for view in chain.readable_buffers] == [12, 16, 20, 9]
    assert all(view.readonly for view in chain.readable_buffers)
    assert (chain.readable_length, chain.writable_buffers, chain.writable_length) == (57, [], 0)


def test_what_is_all_called_writable_is_not_read(either: RawSplit | RawPacked) -> None:
    either.rig.config = dataclasses.replace(either.rig.config, only_read=True)
    either.descriptors((DATA, 16, WRITE, 0))
    if isinstance(either, RawSplit):
        either.offer(0)
    (chain,) = either.start().pop(SIZE)
    assert (chain.readable_buffers, chain.writable_length) == ([], 16)


# Packed rings


def test_packed_chain_longer_than_the_ring(packed: RawPacked) -> None:
    packed.descriptors(*[(DATA, 16, NEXT, 0)] * SIZE)
    broken(packed, "a chain has more descriptors than are free in the ring")


def test_packed_chain_into_descriptors_in_use(packed: RawPacked) -> None:
    packed.descriptors((DATA, 16, 0, 0), *[(DATA, 16, NEXT, 1)] * (SIZE - 1))
    ring = packed.start()
    assert len(ring.pop(1)) == 1
    with pytest.raises(BrokenRingError, match="more descriptors than are free"):
        ring.pop(1)


def test_packed_descriptor_available_while_all_are_in_use(packed: RawPacked) -> None:
    packed.descriptors(*[(DATA, 16, 0, place) for place in range(SIZE)])
    ring = packed.start()
    assert len(ring.pop(SIZE)) == SIZE
    struct.pack_into("<H", packed.rig.view, 14, 0x8000)  # the first one, in the next lap
    with pytest.raises(BrokenRingError, match="available while all of them are in use"):
        ring.pop(SIZE)


def test_packed_readable_after_writable(packed: RawPacked) -> None:
    packed.descriptors((DATA, 16, WRITE | NEXT, 0), (DATA, 16, 0, 0))
    broken(packed, "a readable descriptor follows a writable one")


@pytest.mark.parametrize("flags", [0, WRITE])
def test_packed_zero_length(packed: RawPacked, flags: int) -> None:
    packed.descriptors((DATA, 0, flags, 0))
    broken(packed, "zero length")


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("address", [0, GUEST - 1, LAST - 15, (1 << 64) - 1])
def test_packed_buffer_outside_memory(packed: RawPacked, flags: int, address: int) -> None:
    packed.descriptors((address, 16, flags, 0))
    broken(packed, "a descriptor is outside memory")


def test_packed_chain_too_long(packed: RawPacked) -> None:
    large = 16 << 20
    packed.rig.memory.add(Region(LAST, large, USER + MEMORY_SIZE), shared_file(large))
    packed.indirect(*[(LAST, large, 0, 0)] * 256)
    packed.descriptors((TABLE, 16 * 256, INDIRECT, 0))
    broken(packed, "a chain of more than 4 GiB")


def test_packed_indirect_not_negotiated() -> None:
    packed = RawPacked(int(Feature.VERSION_1))
    packed.descriptors((TABLE, 16, INDIRECT, 0))
    broken(packed, "INDIRECT_DESC was not negotiated")
    packed.close()


def test_packed_indirect_in_indirect(packed: RawPacked) -> None:
    packed.indirect((TABLE + 64, 16, INDIRECT, 0))
    packed.descriptors((TABLE, 16, INDIRECT, 0))
    broken(packed, "an indirect table within an indirect table")


@pytest.mark.parametrize("first", [True, False])
def test_packed_indirect_in_a_list_with_others(packed: RawPacked, first: bool) -> None:
    packed.indirect((DATA, 16, 0, 0))
    if first:
        packed.descriptors((TABLE, 16, INDIRECT | NEXT, 0), (DATA, 16, 0, 0))
    else:
        packed.descriptors((DATA, 16, NEXT, 0), (TABLE, 16, INDIRECT, 0))
    broken(packed, "an indirect descriptor in a list with others")


@pytest.mark.parametrize("length", [0, 1, 15, 17, 40])
def test_packed_indirect_table_of_odd_length(packed: RawPacked, length: int) -> None:
    packed.descriptors((TABLE, length, INDIRECT, 0))
    broken(packed, "which must be a multiple of 16")


def test_packed_indirect_table_outside_memory(packed: RawPacked) -> None:
    packed.descriptors((LAST - 16, 32, INDIRECT, 0))
    broken(packed, "outside memory")


@pytest.mark.parametrize("size", [0, 32769])
def test_size_that_no_packed_ring_has(packed: RawPacked, size: int) -> None:
    with pytest.raises(BrokenRingError, match=f"a packed ring of {size}: 1 to 32768 are possible"):
        PackedRing(packed.rig.memory, RingConfig(size, USER, USER, USER), 0)


@pytest.mark.parametrize("base", [SIZE, SIZE << 16])
def test_start_outside_the_packed_ring(packed: RawPacked, base: int) -> None:
    with pytest.raises(BrokenRingError, match="a packed ring of 8 cannot start at"):
        packed.rig.start(base)


# What is not broken


def test_what_came_before_the_fault_is_served_first(raw: RawSplit) -> None:
    raw.descriptors((DATA, 16, 0, 0), (DATA, 0, 0, 0))
    raw.offer(0, 1)
    ring = raw.start()
    (chain,) = ring.pop(SIZE)
    ring.push([completed(chain, 0)])
    with pytest.raises(BrokenRingError, match="zero length"):
        ring.pop(SIZE)


def test_a_broken_ring_breaks_no_other(raw: RawSplit) -> None:
    """Two rings in the same memory: one driver's fault is not the other's."""
    raw.offer(SIZE)
    bad = raw.start()
    with pytest.raises(BrokenRingError):
        bad.pop(1)
    good = Rig("packed", SIZE)
    request = good.add([4], [4])
    good.driver.publish()
    device = good.start()
    (chain,) = device.pop(1)
    device.push([work(chain)])
    assert good.collect() == [request.token]
    good.close()


def test_indirect_after_direct_descriptors(raw: RawSplit) -> None:
    """Section 2.7.5.3.2: a device must handle it."""
    raw.indirect((DATA, 3, NEXT, 1), (DATA + 64, 5, WRITE, 0))
    raw.descriptors((DATA, 7, NEXT, 1), (TABLE, 32, INDIRECT, 0))
    raw.offer(0)
    (chain,) = raw.start().pop(1)
    assert [len(view) for view in chain.readable_buffers] == [7, 3]
    assert [len(view) for view in chain.writable_buffers] == [5]


@pytest.mark.parametrize("kind", [RawSplit, RawPacked])
def test_write_flag_of_an_indirect_descriptor_is_ignored(kind: type[RawSplit] | type[RawPacked]) -> None:
    """Section 2.7.5.3.2: a device must ignore it."""
    raw = kind()
    raw.indirect((DATA, 3, 0, 0))
    raw.descriptors((TABLE, 16, INDIRECT | WRITE, 0))
    if isinstance(raw, RawSplit):
        raw.offer(0)
    (chain,) = raw.start().pop(1)
    assert (chain.readable_length, chain.writable_length) == (3, 0)
    raw.close()


def test_unknown_flags_are_ignored(raw: RawSplit) -> None:
    raw.descriptors((DATA, 3, 0xFFF8, 0))
    raw.offer(0)
    (chain,) = raw.start().pop(1)
    assert chain.readable_length == 3


def test_chain_of_the_whole_ring(raw: RawSplit) -> None:
    raw.descriptors(*[(DATA, 2, NEXT, place + 1) for place in range(SIZE - 1)], (DATA, 2, 0, 0))
    raw.offer(0)
    (chain,) = raw.start().pop(1)
    assert chain.readable_length == 2 * SIZE


def test_buffer_and_table_across_a_region_border(raw: RawSplit) -> None:
    """Memory of the guest in one piece may be in two regions, and in two files."""
    other = shared_file(MEMORY_SIZE)
    os.pwrite(other.fileno(), struct.pack("<QIHH", DATA, 5, WRITE, 0), 0)
    raw.rig.memory.add(Region(LAST, MEMORY_SIZE, USER + MEMORY_SIZE), other)
    struct.pack_into("<QIHH", raw.rig.view, MEMORY_SIZE - 16, LAST - 20, 36, NEXT, 1)
    raw.descriptors((LAST - 16, 32, INDIRECT, 0))
    raw.offer(0)
    (chain,) = raw.start().pop(1)
    assert [len(view) for view in chain.readable_buffers] == [20, 16]
    assert chain.readable_buffers[1] == struct.pack("<QIHH", DATA, 5, WRITE, 0)
    assert chain.writable_length == 5


def test_features_of_the_rig_are_those_of_a_modern_driver() -> None:
    assert MODERN == Feature.VERSION_1 | Feature.INDIRECT_DESC
    assert split.layout(SIZE).end < TABLES
