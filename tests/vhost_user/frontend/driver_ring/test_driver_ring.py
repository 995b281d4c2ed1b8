"""The driver's side: what it refuses, what it tells a device, and devices that break the ring."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from vhost_user.frontend.driver_ring import Buffer, PackedDriver, RingFullError, SplitDriver, Table

if TYPE_CHECKING:
    from vhost_user.frontend.driver_ring import DriverRing

SIZE = 4
PARTS = split.layout(SIZE)
ONE = [Buffer(0x1000, 16)]
KINDS = ["split", "packed"]


def driver_of(kind: str, memory: bytearray, features: int = 0) -> DriverRing:
    """Return a driver with a ring of SIZE at the beginning of `memory`."""
    view = memoryview(memory)
    if kind == "split":
        return SplitDriver(
            SIZE,
            features,
            view[: PARTS.avail],
            view[PARTS.avail : PARTS.used],
            view[PARTS.used : PARTS.end],
        )
    return PackedDriver(SIZE, features, view[:64], view[64:68], view[68:72])


@pytest.fixture
def memory() -> bytearray:
    return bytearray(b"\xff" * 256)


@pytest.mark.parametrize("kind", KINDS)
def test_begins_with_an_empty_ring(kind: str, memory: bytearray) -> None:
    """Whatever was in the memory before."""
    driver = driver_of(kind, memory)
    assert driver.used() == []
    assert driver.free == SIZE
    assert not driver.publish(), "there is nothing to kick for"


@pytest.mark.parametrize("kind", KINDS)
def test_full_ring(kind: str, memory: bytearray) -> None:
    driver = driver_of(kind, memory)
    driver.add(ONE, ONE, "first")
    before = bytes(memory)
    with pytest.raises(RingFullError, match="3 descriptors are needed, 2 are free"):
        driver.add(ONE, ONE * 2, "second")
    assert bytes(memory) == before
    assert driver.pending == ["first"]


@pytest.mark.parametrize("kind", KINDS)
def test_indirect_chain_takes_one_descriptor(kind: str, memory: bytearray) -> None:
    driver = driver_of(kind, memory)
    table = bytearray(48)
    driver.add(ONE, ONE * 2, table=Table(0x4000, memoryview(table)))
    driver.publish()
    assert driver.free == SIZE - 1
    address, length, *rest = struct.unpack_from("<QIHH", memory)
    flags = rest[0] if kind == "split" else rest[1]
    assert (address, length, flags & 7) == (0x4000, 48, 4)
    rows = list(struct.iter_unpack("<QIHH", table))
    if kind == "split":
        assert rows == [(0x1000, 16, 1, 1), (0x1000, 16, 3, 2), (0x1000, 16, 2, 0)]
    else:
        assert rows == [(0x1000, 16, 0, 0), (0x1000, 16, 0, 2), (0x1000, 16, 0, 2)]


@pytest.mark.parametrize("kind", KINDS)
def test_chain_that_cannot_be(kind: str, memory: bytearray) -> None:
    driver = driver_of(kind, memory)
    with pytest.raises(ValueError, match="a chain needs a buffer"):
        driver.add([], [])
    with pytest.raises(ValueError, match="a table of 16 bytes is too small for 2 descriptors"):
        driver.add(ONE, ONE, table=Table(0x4000, memoryview(bytearray(16))))
    assert driver.free == SIZE


def test_split_chain_in_memory(memory: bytearray) -> None:
    driver = driver_of("split", memory)
    driver.add(ONE, [Buffer(0x2000, 5)])
    assert struct.unpack_from("<QIHHQIHH", memory) == (0x1000, 16, 1, 1, 0x2000, 5, 2, 0)
    assert struct.unpack_from("<HHH", memory, PARTS.avail) == (0, 0, 0), "not yet"
    assert driver.publish()
    assert struct.unpack_from("<HHH", memory, PARTS.avail) == (0, 1, 0)


def test_packed_chain_in_memory(memory: bytearray) -> None:
    driver = driver_of("packed", memory)
    driver.add(ONE, [Buffer(0x2000, 5)])
    assert struct.unpack_from("<H", memory, 14) == (0,), "not yet"
    assert driver.publish()
    available = packed.AVAIL
    assert struct.unpack_from("<QIHHQIHH", memory) == (
        *(0x1000, 16, 0, available | 1),
        *(0x2000, 5, 0, available | 2),
    )


def test_device_sees_the_first_of_several_packed_chains_last(memory: bytearray) -> None:
    driver = driver_of("packed", memory)
    for _ in range(3):
        driver.add(ONE, [])
    flags = [struct.unpack_from("<H", memory, 14 + 16 * place)[0] for place in range(3)]
    assert flags == [0, packed.AVAIL, packed.AVAIL]
    driver.publish()
    assert struct.unpack_from("<H", memory, 14) == (packed.AVAIL,)


def test_notification_data_of_a_split_ring(memory: bytearray) -> None:
    """Section 4.1.5.2: the queue, and the index in the available ring."""
    driver = driver_of("split", memory, int(Feature.NOTIFICATION_DATA))
    driver.add(ONE, [])
    driver.add(ONE, [])
    assert driver.notification_data(3) == 2 << 16 | 3


def test_notification_data_of_a_packed_ring(memory: bytearray) -> None:
    """The queue, the next descriptor to be used in 15 bits, and its wrap counter."""
    driver = driver_of("packed", memory, int(Feature.NOTIFICATION_DATA))
    assert driver.notification_data(3) == 0x8000_0003
    for _ in range(SIZE):
        driver.add(ONE, [])
    assert driver.notification_data(3) == 0x0000_0003


def test_split_device_that_skips_in_order(memory: bytearray) -> None:
    """Section 2.7.9: one used element may stand for all up to it."""
    driver = driver_of("split", memory, int(Feature.IN_ORDER))
    for token in "abc":
        driver.add([], [Buffer(0x1000, 7)], token)
    driver.publish()
    heads = struct.unpack_from("<HHHHH", memory, PARTS.avail)[2:]
    struct.pack_into("<HHII", memory, PARTS.used, 0, 3, heads[2], 4)
    assert driver.used() == [("a", 7), ("b", 7), ("c", 4)]
    assert driver.free == SIZE


def test_packed_device_that_skips_in_order(memory: bytearray) -> None:
    driver = driver_of("packed", memory, int(Feature.IN_ORDER))
    for token in "abc":
        driver.add([], [Buffer(0x1000, 7)], token)
    driver.publish()
    buffer_id = struct.unpack_from("<H", memory, 2 * 16 + 12)[0]
    struct.pack_into("<IHH", memory, 8, 4, buffer_id, packed.used_flags(True))
    assert driver.used() == [("a", 7), ("b", 7), ("c", 4)]
    assert driver.free == SIZE


def test_split_device_that_jumps(memory: bytearray) -> None:
    driver = driver_of("split", memory)
    struct.pack_into("<HH", memory, PARTS.used, 0, SIZE + 1)
    with pytest.raises(RuntimeError, match="the used index jumped from 0 to 5"):
        driver.used()


@pytest.mark.parametrize("kind", KINDS)
def test_device_that_uses_what_it_does_not_have(kind: str, memory: bytearray) -> None:
    driver = driver_of(kind, memory)
    driver.add(ONE, [])
    driver.publish()
    if kind == "split":
        struct.pack_into("<HHII", memory, PARTS.used, 0, 1, 3, 0)
    else:
        struct.pack_into("<IHH", memory, 8, 0, 3, packed.used_flags(True))
    with pytest.raises(RuntimeError, match="the device used 3, which it does not have"):
        driver.used()
