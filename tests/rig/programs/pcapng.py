"""Reads a capture: a pcapng file of Ethernet frames that contains whole blocks only."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6


@dataclass(frozen=True)
class Packet:
    """A captured frame; `time` in nanoseconds, `length` before it was cut to the snaplen."""

    interface: str
    direction: str
    time: int
    length: int
    data: bytes


def read(data: bytes) -> list[Packet]:
    """Return the packets of a file. Fails where it is no such file."""
    (first, *rest) = _blocks(data)
    assert first == (SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    names: list[str] = []
    packets = []
    for kind, body in rest:
        if kind == INTERFACE:
            link, _, _ = struct.unpack_from("<HHI", body)
            options = _options(body[8:])
            assert (link, options[9]) == (1, b"\x09")
            names.append(options[2].decode())
        else:
            assert kind == PACKET
            packets.append(_packet(body, names))
    return packets


def _packet(body: bytes, names: list[str]) -> Packet:
    interface, high, low, captured, length = struct.unpack_from("<IIIII", body)
    data = body[20 : 20 + captured]
    (flags,) = struct.unpack("<I", _options(body[20 + captured + -captured % 4 :])[2])
    return Packet(names[interface], {1: "in", 2: "out"}[flags & 3], high << 32 | low, length, data)


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0
        end = at + length
        assert struct.unpack_from("<I", data, end - 4) == (length,)
        yield kind, data[at + 8 : end - 4]
        at = end


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while True:
        code, length = struct.unpack_from("<HH", data)
        if code == 0:
            assert length == 0
            return found
        found[code] = data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]
