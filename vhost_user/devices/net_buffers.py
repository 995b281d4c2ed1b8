"""Frames in rows of buffers: their first bytes, and their header in either of its sizes.

Within networks of ours, the virtio-net header has 12 bytes; a legacy driver's has 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.virtio.net import HEADER, LEGACY_HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence


def split(buffers: Sequence[memoryview], size: int) -> tuple[bytes, list[memoryview]]:
    """Return a copy of the first `size` bytes, and the buffers behind those."""
    first = buffers[0]
    if len(first) > size:
        return bytes(first[:size]), [first[size:], *buffers[1:]]
    start = b""
    for number, buffer in enumerate(buffers):
        missing = size - len(start)
        start += buffer[:missing]
        if len(buffer) > missing:
            return start, [buffer[missing:], *buffers[number + 1 :]]
    return start, []


def first(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """Return the buffers of the first `length` bytes, of which there are as many."""
    found = []
    for buffer in buffers:
        if length <= len(buffer):
            found.append(buffer[:length])
            break
        found.append(buffer)
        length -= len(buffer)
    return found


def as_bytes(buffers: Sequence[memoryview], length: int, header_size: int) -> bytes:
    """Return a copy of a frame whose header has `header_size` bytes, with one of 12 bytes."""
    frame = b"".join(first(buffers, length))
    if header_size == HEADER.size:
        return frame
    return frame[:header_size] + b"\0\0" + frame[header_size:]


def with_header_size(
    buffers: list[memoryview], length: int, header_size: int
) -> tuple[list[memoryview], int]:
    """Return a frame whose header has 12 bytes, and its length, with a header of this size."""
    if header_size == HEADER.size:
        return buffers, length
    start, rest = split(buffers, HEADER.size)
    return [memoryview(start[:LEGACY_HEADER_SIZE]), *rest], length - HEADER.size + LEGACY_HEADER_SIZE
