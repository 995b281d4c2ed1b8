"""A driver and a device on one ring, in memory that both have mapped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.fds import OwnedFd
from protocol.vhost_user import inflight
from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from tests.vhost_user.chains import completed
from vhost_user.frontend.driver_ring import Buffer, PackedDriver, SplitDriver, Table
from vhost_user.memory import GuestMemory, Region
from vhost_user.ring import PackedRing, RingConfig, SplitRing

if TYPE_CHECKING:
    from vhost_user.frontend.driver_ring import DriverRing
    from vhost_user.ring import Chain, Ring

GUEST = 0x1_4000_0000
USER = 0x7F00_0000_0000
MEMORY_SIZE = 1 << 20

TABLES = 0x10000
"""Where chains have their indirect tables, and from where they have their buffers."""
TABLE_SIZE = 0x100
BUFFERS = 0x20000
CHAIN_SIZE = 0x400
BUFFER_SIZE = 0x40
CHAINS = 256

MODERN = int(Feature.VERSION_1 | Feature.INDIRECT_DESC)
PACKED_START = 0x8000_8000
"""What a front-end gives as the base of a packed ring that never ran."""


def shared_file(size: int) -> OwnedFd:
    """Return a memory file of `size` bytes."""
    fd = OwnedFd(os.memfd_create("test-memory", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    return fd


@dataclass
class Request:
    """What the driver asked for: the bytes it gave, and where the answer is to be."""

    token: int
    sent: bytes
    writable: list[Buffer] = field(default_factory=list)

    @property
    def room(self) -> int:
        return sum(buffer.length for buffer in self.writable)

    @property
    def answer(self) -> bytes:
        """What a device must write."""
        return answer(self.sent, self.room)


def answer(sent: bytes, room: int) -> bytes:
    seed = sum(sent) + len(sent)
    return bytes((seed + place) & 0xFF for place in range(room))


def work(chain: Chain) -> Chain:
    """Do as a device what a request asks for. Returns the chain as the ring is given it."""
    return completed(chain, fill(chain))


def fill(chain: Chain) -> int:
    """Do as a device what a request asks for. Returns the bytes written."""
    result = answer(b"".join(chain.readable_buffers), chain.writable_length)
    for view in chain.writable_buffers:
        view[:] = result[: len(view)]
        result = result[len(view) :]
    return chain.writable_length


class Rig:
    """One ring. The driver is made at once, the device by `start()`."""

    def __init__(
        self,
        kind: str,
        size: int,
        features: int = MODERN,
        *,
        big_endian: bool = False,
        tracked: bool = False,
    ) -> None:
        self.kind = kind
        self.memory = GuestMemory()
        self.file = shared_file(MEMORY_SIZE)
        self.region = Region(GUEST, MEMORY_SIZE, USER)
        self.memory.set_table([(self.region, self.file.dup())])
        self.view = self.memory.regions[0].view
        self.driver, self.config = self._ring(size, features, big_endian)
        self.inflight = (
            memoryview(bytearray(inflight.queue_bytes(size, packed=kind == "packed"))) if tracked else None
        )
        self.requests: dict[int, Request] = {}
        self.next_token = 0

    def close(self) -> None:
        """Let go of the memory. What a caught error still refers to goes with `gc.collect()`."""
        self.memory.close()
        self.file.close()
        del self.view, self.driver

    def _ring(self, size: int, features: int, big_endian: bool) -> tuple[DriverRing, RingConfig]:
        view = self.view
        if self.kind == "split":
            parts = split.layout(size)
            driver: DriverRing = SplitDriver(
                size,
                features,
                view[parts.table : parts.avail],
                view[parts.avail : parts.used],
                view[parts.used : parts.end],
                big_endian=big_endian,
            )
            return driver, RingConfig(
                size, USER, USER + parts.avail, USER + parts.used, features, big_endian=big_endian
            )
        end = packed.DESCRIPTOR_SIZE * size
        driver = PackedDriver(size, features, view[:end], view[end : end + 4], view[end + 4 : end + 8])
        return driver, RingConfig(size, USER, USER + end, USER + end + 4, features)

    def wind(self, index: int) -> None:
        """Have a split ring be as one through which so many chains have gone, before its first use."""
        driver = self.driver
        assert isinstance(driver, SplitDriver)
        driver._next_avail = driver._published = driver._next_used = index
        driver._avail[split.AVAIL_INDEX] = driver._used[split.USED_INDEX] = index

    def start(self, base: int | None = None, *, doubted: bool = False) -> Ring:
        """Start a device at `base`; by default where a ring starts that never ran."""
        kind, first = (SplitRing, 0) if self.kind == "split" else (PackedRing, PACKED_START)
        return kind(self.memory, self.config, first if base is None else base, self.inflight, doubted=doubted)

    def add(self, readable: list[int], writable: list[int], *, indirect: bool = False) -> Request:
        """Add a request with buffers of these lengths, each up to BUFFER_SIZE. Raises RingFullError."""
        token = self.next_token
        start = BUFFERS + token % CHAINS * CHAIN_SIZE
        places = [
            Buffer(GUEST + start + number * BUFFER_SIZE, length)
            for number, length in enumerate([*readable, *writable])
        ]
        request = Request(token, b"", places[len(readable) :])
        table = None
        if indirect:
            place = TABLES + token % CHAINS * TABLE_SIZE
            table = Table(GUEST + place, self.view[place : place + TABLE_SIZE])
        self.driver.add(places[: len(readable)], request.writable, token, table=table)
        for buffer in places[: len(readable)]:
            data = bytes((token * 7 + place) & 0xFF for place in range(buffer.length))
            self.guest(buffer)[:] = data
            request.sent += data
        for buffer in request.writable:
            self.guest(buffer)[:] = bytes(buffer.length)
        self.requests[token] = request
        self.next_token += 1
        return request

    def guest(self, buffer: Buffer) -> memoryview:
        """Return the memory of a buffer."""
        start = buffer.address - GUEST
        return self.view[start : start + buffer.length]

    def collect(self) -> list[int]:
        """Take back what was used, and check it. Returns the tokens in their order."""
        tokens = []
        for token, written in self.driver.used():
            assert isinstance(token, int)
            request = self.requests.pop(token)
            assert written == request.room
            assert b"".join(map(self.guest, request.writable)) == request.answer
            tokens.append(token)
        return tokens
