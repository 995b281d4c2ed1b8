"""Offloads: a frame's header is checked, and the work that it leaves is done.

A driver may leave checksums and the cutting up of TCP and UDP segments to its device (virtio 1.3,
section 5.1.6.2). Where the guest at the other end can take such a frame, it goes there as it is; elsewhere,
it becomes frames as they are on a wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocol.virtio.net import GSO_ECN, HEADER, GsoType, HeaderFlag, NetFeature
from protocol.words import plural

MOST_OFFLOADS = (
    NetFeature.CSUM
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.HOST_USO
    | NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
)
"""What can be offered to a guest because it can be done here."""

NOTHING_LEFT = bytes(HEADER.size)
"""The header of a frame that is as on a wire."""

SMALLEST_SEGMENT = 48
"""Of TCP; Linux's smallest as well. With less, one frame of a guest's would become too many."""
MOST_DATAGRAMS = 128
"""Into which one of UDP is cut; what Linux sends at most."""

_WORD = struct.Struct(">H")
_VLAN_TYPES = {0x8100, 0x88A8}
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPV4_SIZE, _IPV6_SIZE = 20, 40
_TCP, _UDP = 6, 17
_SIZES = {_TCP: 20, _UDP: 8}
"""The smallest headers of each."""
_VERSIONS = {int(GsoType.TCPV4): 4, int(GsoType.TCPV6): 6}
_CHECKSUMS = {_TCP: 16, _UDP: 6}
"""Where a header of each has its checksum."""
_FIN_PSH, _CWR = 0x09, 0x80
_SEQUENCE = struct.Struct(">I")

# For each frame: an enumeration's numbers are ten times as quick as its members.
_NEEDS_CSUM = int(HeaderFlag.NEEDS_CSUM)
_UDP_L4 = int(GsoType.UDP_L4)
_GUEST_CSUM = int(NetFeature.GUEST_CSUM)
_NEEDED: dict[int, int] = {
    kind: int(features | NetFeature.GUEST_CSUM)
    for kind, features in {
        GsoType.TCPV4: NetFeature.GUEST_TSO4,
        GsoType.TCPV4 | GSO_ECN: NetFeature.GUEST_TSO4 | NetFeature.GUEST_ECN,
        GsoType.TCPV6: NetFeature.GUEST_TSO6,
        GsoType.TCPV6 | GSO_ECN: NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN,
        # Over which version of IP it is, the header does not say.
        GsoType.UDP_L4: NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6,
    }.items()
}


def check(header: bytes, length: int) -> tuple[bytes, int]:
    """Return the header for the guest that gets the frame, and what that must have on, as NetFeature bits.

    `length` is that of the frame behind the header, of which the rest is not looked at: a guest must
    not trust it, and Linux does not. Raises ValueError for a header that no driver may write.
    """
    if header[:2] == b"\0\0":
        return NOTHING_LEFT, 0
    flags, kind, header_length, size, start, offset, _ = HEADER.unpack(header)
    needed = 0
    if flags & _NEEDS_CSUM:
        if start + offset + 2 > length:
            raise ValueError(f"a checksum at {start} + {offset} in a frame of {plural(length, 'byte')}")
        needed = _GUEST_CSUM
    if kind:
        if kind not in _NEEDED or not needed:
            raise ValueError(f"segmentation of kind {kind:#x} with flags {flags:#x}")
        least = -(-(length - start) // MOST_DATAGRAMS) if kind == _UDP_L4 else SMALLEST_SEGMENT
        if size < max(least, 1):
            raise ValueError(f"segments of {plural(size, 'byte')}")
        needed = _NEEDED[kind]
    if not needed:
        return NOTHING_LEFT, 0
    return HEADER.pack(_NEEDS_CSUM, kind, header_length, size, start, offset, 0), needed


def finish(frame: bytes) -> list[bytes]:
    """Return a frame, whose header was checked, as the frames that a wire would carry, with headers.

    Raises ValueError where the frame is not what its header says.
    """
    flags, kind, _, size, start, offset, _ = HEADER.unpack_from(frame)
    if kind:
        segments = _large_frame(frame[HEADER.size :], kind & ~GSO_ECN, start).segments(size)
    elif flags & _NEEDS_CSUM:
        segments = [_with_checksum(frame[HEADER.size :], start, offset)]
    else:
        return [frame]
    return [NOTHING_LEFT + segment for segment in segments]


def wire_bytes(frame: bytes) -> int:
    """Return how many bytes a frame that was checked takes up on a wire, cut up as its header says.

    The 12 bytes of the header stand for a preamble and a checksum.
    """
    kind: int
    size: int
    start: int
    _, kind, _, size, start, _, _ = HEADER.unpack_from(frame)
    if not kind:
        return len(frame)
    headers = HEADER.size + start + _SIZES[_UDP if kind == _UDP_L4 else _TCP]
    return len(frame) + max(len(frame) - headers - 1, 0) // size * headers


def checksum(data: bytes, more: int = 0) -> int:
    """Return the Internet checksum of `data` and the number `more`; never 0, which is the same as 0xFFFF."""
    if len(data) % 2:
        data += b"\0"
    return 0xFFFF - (int.from_bytes(data, "big") + more) % 0xFFFF


def _with_checksum(data: bytes, start: int, offset: int) -> bytes:
    """Return a frame in which the field so far held the sum of the pseudo-header."""
    at = start + offset
    return data[:at] + _WORD.pack(checksum(data[start:])) + data[at + 2 :]


@dataclass(frozen=True)
class _LargeFrame:
    """A frame of TCP or UDP that is to be cut up."""

    headers: bytes
    payload: bytes
    version: int
    """Of the Internet Protocol."""
    network: int
    """Where its header begins."""
    protocol: int
    """TCP or UDP."""
    transport: int
    """Where the header of that begins."""

    def segments(self, size: int) -> list[bytes]:
        """Return frames with `size` bytes of the payload each, but for the last one."""
        starts = range(0, len(self.payload), size) or range(1)
        return [self._segment(start, self.payload[start : start + size], start // size) for start in starts]

    def _segment(self, start: int, part: bytes, number: int) -> bytes:
        headers = bytearray(self.headers)
        at = self.transport
        length = len(headers) - at + len(part)
        addresses = self._write_network_header(headers, length, number)
        if self.protocol == _TCP:
            self._write_tcp_header(headers, start, is_last=start + len(part) == len(self.payload))
        else:
            _WORD.pack_into(headers, at + 4, length)
        field = at + _CHECKSUMS[self.protocol]
        headers[field : field + 2] = b"\0\0"
        pseudo_header = int.from_bytes(addresses, "big") + self.protocol + length
        _WORD.pack_into(headers, field, checksum(bytes(headers[at:]) + part, pseudo_header))
        return bytes(headers) + part

    def _write_tcp_header(self, headers: bytearray, start: int, *, is_last: bool) -> None:
        """Say where in the stream a segment is; what is said once is in the first or in the last one."""
        at = self.transport
        (sequence,) = _SEQUENCE.unpack_from(headers, at + 4)
        _SEQUENCE.pack_into(headers, at + 4, (sequence + start) & 0xFFFFFFFF)
        if start:
            headers[at + 13] &= ~_CWR
        if not is_last:
            headers[at + 13] &= ~_FIN_PSH

    def _write_network_header(self, headers: bytearray, length: int, number: int) -> bytes:
        """Say how many bytes follow, and number the packet; return its two addresses."""
        at, length = self.network, length + self.transport - self.network
        if self.version == 6:
            _WORD.pack_into(headers, at + 4, length - _IPV6_SIZE)
            return bytes(headers[at + 8 : at + 40])
        (identification,) = _WORD.unpack_from(headers, at + 4)
        _WORD.pack_into(headers, at + 2, length)
        _WORD.pack_into(headers, at + 4, (identification + number) & 0xFFFF)
        headers[at + 10 : at + 12] = b"\0\0"
        _WORD.pack_into(headers, at + 10, checksum(bytes(headers[at : self.transport])))
        return bytes(headers[at + 12 : at + 20])


def _large_frame(data: bytes, kind: int, transport: int) -> _LargeFrame:
    """Return a frame in its parts. Raises ValueError where it is not what its header says."""
    version, network = _network_header(data)
    protocol = _UDP if kind == _UDP_L4 else _TCP
    wanted = _VERSIONS.get(kind, version)
    network_size = _IPV4_SIZE if version == 4 else _IPV6_SIZE
    size = _SIZES[protocol]
    if not version or version != wanted or not network + network_size <= transport <= len(data) - size:
        raise ValueError(f"a frame of IPv{version} where the header says segmentation of kind {kind}")
    if protocol == _TCP:
        size = max((data[transport + 12] >> 4) * 4, size)
    end = transport + size
    return _LargeFrame(data[:end], data[end:], version, network, protocol, transport)


def _network_header(data: bytes) -> tuple[int, int]:
    """Return the version of the Internet Protocol and where its header begins; 0 where it is another one."""
    at = 12
    while len(data) >= at + 2:
        (kind,) = _WORD.unpack_from(data, at)
        if kind not in _VLAN_TYPES:
            return {_IPV4: 4, _IPV6: 6}.get(kind, 0), at + 2
        at += 4
    return 0, at
