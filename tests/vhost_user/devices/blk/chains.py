"""Requests to a block device as chains in plain memory, without a ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from protocol.virtio.blk import REQUEST_HEADER, SEGMENT, RequestStatus, RequestType
from tests.vhost_user.chains import filled
from vhost_user.ring import Chain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

UNANSWERED = 0xEE
"""What fills the driver's memory before the device writes."""


class FakeChain(Chain):
    """A chain of no ring, which tells of its completion."""

    def __init__(self, readable: Iterable[bytes], writable: Iterable[int]) -> None:
        self.is_completed = trio.Event()
        views = [memoryview(bytearray([UNANSWERED] * length)) for length in writable]
        filled(self, [memoryview(bytes(part)) for part in readable], views)

    def complete(self, written: int | None = None) -> None:
        super().complete(written)
        self.is_completed.set()

    @property
    def room(self) -> bytes:
        """All that the device may write, as it is now."""
        return b"".join(self.writable_buffers)

    @property
    def status(self) -> RequestStatus:
        """The last byte. Raises ValueError where there is no status yet."""
        return RequestStatus(self.room[-1])

    @property
    def data(self) -> bytes:
        """What the device has written before the status."""
        return self.room[:-1]


def chain(readable: Iterable[bytes], writable: Iterable[int]) -> FakeChain:
    """Return a chain of these buffers to read, and buffers of these lengths to write."""
    return FakeChain(readable, writable)


def header(kind: int, sector: int = 0) -> bytes:
    return REQUEST_HEADER.pack(kind, 0, sector)


def read(sector: int, *lengths: int) -> FakeChain:
    return chain([header(RequestType.IN, sector)], [*lengths, 1])


def write(sector: int, *parts: bytes) -> FakeChain:
    return chain([header(RequestType.OUT, sector), *parts], [1])


def flush() -> FakeChain:
    return chain([header(RequestType.FLUSH)], [1])


def get_id(room: int = 20) -> FakeChain:
    return chain([header(RequestType.GET_ID)], [room, 1])


def segments(kind: RequestType, rows: Sequence[tuple[int, int, int]]) -> FakeChain:
    """Return a DISCARD or WRITE_ZEROES of rows (sector, sectors, flags)."""
    return chain([header(kind), b"".join(SEGMENT.pack(*row) for row in rows)], [1])
