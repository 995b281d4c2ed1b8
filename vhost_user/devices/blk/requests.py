"""Requests to a block device and their responses (virtio 1.3, section 5.2.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio.blk import (
    FLUSH_OUT,
    ID_SIZE,
    REQUEST_HEADER,
    SECTOR_SIZE,
    SEGMENT,
    SEGMENT_UNMAP,
    BlkFeature,
    RequestStatus,
    RequestType,
)
from protocol.words import plural
from vhost_user.buffers import Readable, Writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.ring import Chain

MAX_SEGMENTS = 32
"""Segments in one DISCARD or WRITE_ZEROES."""
MAX_DISCARD_SECTORS = 1 << 21
MAX_WRITE_ZEROES_SECTORS = 1 << 17
"""Sectors in one segment; fewer of zeroes, because some disks have to write each of them."""


OPERATIONS = {
    "read": RequestType.IN,
    "write": RequestType.OUT,
    "flush": RequestType.FLUSH,
    "get-id": RequestType.GET_ID,
    "discard": RequestType.DISCARD,
    "write-zeroes": RequestType.WRITE_ZEROES,
}
"""What requests are called, in rules and in the log."""
_NAMES = {number: name for name, number in OPERATIONS.items()}


class Segment(NamedTuple):
    """A run of sectors that a request is about."""

    sector: int
    sectors: int
    unmap: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its driver put it: well-formed, but perhaps beyond the end of the disk."""

    type: RequestType
    segments: tuple[Segment, ...] = ()
    data: tuple[memoryview, ...] = ()
    """What is to be written, or where to put what is read."""

    def __str__(self) -> str:
        """Say what it asks for, as in "read of 4096 bytes at sector 8"."""
        name = _NAMES[self.type]
        if not self.segments:
            return name
        size = sum(segment.sectors for segment in self.segments) * SECTOR_SIZE
        where = "at" if len(self.segments) == 1 else f"in {len(self.segments)} segments from"
        return f"{name} of {plural(size, 'byte')} {where} sector {self.segments[0].sector}"


class BadRequestError(Exception):
    """A request that cannot be done. Holds the `status` for the driver; says why in one line."""

    def __init__(self, status: RequestStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def parse_request(chain: Chain, features: BlkFeature) -> Request:
    """Take a request apart, where `features` are what the driver turned on. Raises BadRequestError."""
    readable = Readable(chain.readable_buffers, chain.readable_length)
    header = readable.read(REQUEST_HEADER.size)
    if len(header) < REQUEST_HEADER.size:
        raise _io_error(f"a header of {plural(len(header), 'byte')}")
    if not chain.writable_length:
        raise _io_error("no byte for the status")
    number, _, sector = REQUEST_HEADER.unpack(header)
    parser, needed = _PARSERS.get(number), _NEEDED.get(number, BlkFeature.NONE)
    if parser is None or features & needed != needed:
        raise BadRequestError(RequestStatus.UNSUPP, f"a request of type {number}")
    try:
        return parser(number, sector, readable, Writable(chain.writable_buffers, chain.writable_length - 1))
    except BadRequestError as error:
        operation = _NAMES.get(RequestType.FLUSH if number == FLUSH_OUT else number)
        raise BadRequestError(error.status, f"{operation} at sector {sector}: {error}") from None


def write_response(chain: Chain, status: RequestStatus) -> None:
    """Write the status of a request, where there is a byte for it.

    All that is writable counts as written, up to and with the status, so nothing before it may be
    left as it was: what failed gives zeroes.
    """
    if status is not RequestStatus.OK:
        for buffer in chain.writable_buffers:
            buffer[:] = bytes(len(buffer))
    if chain.writable_buffers:
        chain.writable_buffers[-1][-1] = status


def _parse_read(number: int, sector: int, readable: Readable, room: Writable) -> Request:
    _expect_none(readable)
    segment = Segment(sector, _sectors(room.length))
    return Request(RequestType(number), (segment,), tuple(room.first(room.length)))


def _parse_write(number: int, sector: int, readable: Readable, room: Writable) -> Request:
    _expect_no_room(room)
    segment = Segment(sector, _sectors(readable.remaining))
    return Request(RequestType(number), (segment,), tuple(readable.buffers))


def _parse_flush(_number: int, _sector: int, _readable: Readable, room: Writable) -> Request:
    _expect_no_room(room)
    return Request(RequestType.FLUSH)


def _parse_get_id(number: int, _sector: int, readable: Readable, room: Writable) -> Request:
    _expect_none(readable)
    if room.length < ID_SIZE:
        raise _io_error(f"{plural(room.length, 'byte')} of room for an id of {ID_SIZE}")
    return Request(RequestType(number), data=tuple(room.first(room.length)))


def _parse_segments(number: int, _sector: int, readable: Readable, room: Writable) -> Request:
    _expect_no_room(room)
    length, type_ = readable.remaining, RequestType(number)
    if not length or length % SEGMENT.size or length > MAX_SEGMENTS * SEGMENT.size:
        raise _io_error(
            f"{plural(length, 'byte')} of segments, which are 1 to {MAX_SEGMENTS} of {SEGMENT.size} bytes"
        )
    limit, known = _SEGMENT_RULES[type_]
    segments = []
    for sector, count, flags in SEGMENT.iter_unpack(readable.read()):
        if flags & ~known:
            raise BadRequestError(RequestStatus.UNSUPP, f"a segment of {type_.name} with flags {flags:#x}")
        if count > limit:
            raise _io_error(f"{type_.name} of {plural(count, 'sector')} at once; {limit} are possible")
        segments.append(Segment(sector, count, bool(flags & SEGMENT_UNMAP)))
    return Request(type_, tuple(segments))


_PARSERS: dict[int, Callable[[int, int, Readable, Writable], Request]] = {
    RequestType.IN: _parse_read,
    RequestType.OUT: _parse_write,
    RequestType.FLUSH: _parse_flush,
    FLUSH_OUT: _parse_flush,
    RequestType.GET_ID: _parse_get_id,
    RequestType.DISCARD: _parse_segments,
    RequestType.WRITE_ZEROES: _parse_segments,
}

_NEEDED = {RequestType.DISCARD: BlkFeature.DISCARD, RequestType.WRITE_ZEROES: BlkFeature.WRITE_ZEROES}
"""The features without which a request is none."""

_SEGMENT_RULES = {
    RequestType.DISCARD: (MAX_DISCARD_SECTORS, 0),
    RequestType.WRITE_ZEROES: (MAX_WRITE_ZEROES_SECTORS, SEGMENT_UNMAP),
}
"""How many sectors a segment may have, and which flags."""


def _sectors(length: int) -> int:
    if length % SECTOR_SIZE:
        raise _io_error(f"{plural(length, 'byte')} of data, no multiple of {SECTOR_SIZE}")
    return length // SECTOR_SIZE


def _expect_none(readable: Readable) -> None:
    if readable.remaining:
        raise _io_error(f"{plural(readable.remaining, 'byte')} to write in a request that reads")


def _expect_no_room(room: Writable) -> None:
    if room.length:
        raise _io_error(f"room for {plural(room.length, 'byte')} in a request that reads nothing")


def _io_error(reason: str) -> BadRequestError:
    return BadRequestError(RequestStatus.IOERR, reason)
