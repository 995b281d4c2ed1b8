"""Valid rings as inputs: a driver has made chains available, and now the device is to take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import inflight
from protocol.virtio.features import Feature
from tests.fuzz.guest import NEIGHBOUR, RING
from tests.fuzz.rings import (
    BIG_ENDIAN,
    CHANGE,
    HEADER,
    IOMMU,
    KICKS,
    KILL,
    LEGACY,
    LOGGED,
    OPTIONS,
    POP,
    PUSH,
    SCRIBBLE,
    SIZES,
    SMALL_LOG,
    STOP,
    TABLE,
    TRACKED,
    parts_of,
)
from vhost_user.frontend.driver_ring import Buffer, PackedDriver, SplitDriver, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vhost_user.frontend.driver_ring import DriverRing

_TABLES = 0x120
"""Where chains have their indirect tables, 0x60 bytes each; their buffers come after those of 8 chains."""
_BUFFERS = 0x420
_PACKED_START = 0x8000_8000

Chain = tuple[list[bytes], list[int]]
"""What is in the buffers to read, and how long those to write are."""

_CHAINS: list[Chain] = [([b"question"], [16]), ([b"one", b"two"], []), ([], [8, 8]), ([b"last"], [1])]
_TO_WRITE: list[Chain] = [([], [16]), ([], [16])]

_USUAL = bytes([KICKS | 8, POP | 0xF8, PUSH | 0x38, KICKS | 8])
_BY_ONE = bytes([KICKS, POP, POP, PUSH | 8 << 3, POP, TABLE, PUSH, POP, PUSH, PUSH, KICKS | 8])
_STOPPED = bytes([POP | 1 << 3, POP, PUSH, STOP, POP | 0xF8, PUSH | 0x38, CHANGE])
_KILLED = bytes([POP | 0xF8, PUSH | 8 << 3, KILL, POP | 0xF8, PUSH | 0x38])
_CHANGED = bytes([POP, SCRIBBLE, 2, 0, 7, 7, PUSH, POP | 0xF8, CHANGE | 1 << 3, POP, PUSH | 0x38])


def memory(
    kind: str,
    size: int,
    features: int,
    chains: Sequence[Chain],
    *,
    big_endian: bool = False,
    indirect: bool,
    buffers_at: int = _BUFFERS,
) -> bytes:
    """Return the guest's memory from address 0 on, where a driver has made chains available.

    Their buffers are next to each other. Only those in RING can have something in them.
    """
    content = bytearray(RING.size)
    view = memoryview(content)
    table, avail, used, end = parts_of(kind, size)
    driver: DriverRing
    if kind == "split":
        areas = view[table:avail], view[avail:used], view[used:end]
        driver = SplitDriver(size, features, *areas, big_endian=big_endian)
    else:
        driver = PackedDriver(size, features, view[table:avail], view[avail:used], view[used:end])
    place = buffers_at
    for number, (readable, writable) in enumerate(chains):
        buffers = []
        for length in [*map(len, readable), *writable]:
            buffers.append(Buffer(place, length))
            place += length
        for buffer, data in zip(buffers, readable, strict=False):
            view[buffer.address : buffer.address + buffer.length] = data
        start = _TABLES + 0x60 * number
        own = Table(start, view[start : start + 0x60]) if indirect else None
        driver.add(buffers[: len(readable)], buffers[len(readable) :], number, table=own)
    driver.publish()
    return bytes(content).rstrip(b"\0")


def ring_seeds(kind: str) -> Iterator[tuple[str, bytes]]:
    """Yield a ring with each option, and each of what can be done with one."""
    plain = {
        "plain": 0,
        "event_index": 0b1,
        "in_order": 0b10,
        "indirect": 0b100,
        "notify_on_empty": 0b1000,
        "logged": 0b101 | LOGGED,
        "iommu": 0b100 | IOMMU,
    }
    if kind == "split":
        plain |= {"legacy": LEGACY, "big_endian": LEGACY | BIG_ENDIAN}
    for name, flags in plain.items():
        yield name, _seed(kind, flags, _USUAL)
    for name, steps in {"by_one": _BY_ONE, "stopped": _STOPPED, "changed": _CHANGED}.items():
        yield name, _seed(kind, 0b11, steps)
    for name, steps in {"tracked": _BY_ONE, "stopped_tracked": _STOPPED, "killed": _KILLED}.items():
        yield name, _seed(kind, 0b100, steps, TRACKED)
    yield "log_too_small", _seed(kind, 0b100 | LOGGED, _USUAL, SMALL_LOG)
    places = {
        "across_a_border": RING.size - 8,
        "up_to_the_end": NEIGHBOUR.guest_address + NEIGHBOUR.size - 32,
        "beyond_the_end": NEIGHBOUR.guest_address + NEIGHBOUR.size - 24,
        "up_to_the_last_address": (1 << 64) - 32,
    }
    for name, place in places.items():
        yield name, _seed(kind, 0, _USUAL, chains=_TO_WRITE, buffers_at=place)


def _seed(
    kind: str,
    flags: int,
    steps: bytes,
    switches: int = 0,
    *,
    chains: Sequence[Chain] = _CHAINS,
    buffers_at: int = _BUFFERS,
) -> bytes:
    size = SIZES[kind][0]
    features = sum(int(option) for bit, option in enumerate(OPTIONS) if flags >> bit & 1)
    if not flags & LEGACY:
        features |= Feature.VERSION_1
    content = memory(
        kind,
        size,
        features,
        chains,
        big_endian=bool(flags & BIG_ENDIAN),
        indirect=bool(features & Feature.INDIRECT_DESC),
        buffers_at=buffers_at,
    )
    base = 0 if kind == "split" else _PACKED_START
    kept = inflight.queue_bytes(size, packed=kind == "packed") if switches & TRACKED else 0
    return HEADER.pack(flags, 0, switches, len(steps), base) + steps + bytes(kept) + content
