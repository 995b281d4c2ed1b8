"""What headers leave to do, done in software: the frames are right by an independent reckoning."""

from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio.net import GSO_ECN, HEADER, GsoType, HeaderFlag, NetFeature
from vhost_user.devices.net.ports.offload import (
    MOST_DATAGRAMS,
    NOTHING_LEFT,
    check,
    checksum,
    finish,
    wire_bytes,
)

NEEDS_CSUM = HeaderFlag.NEEDS_CSUM
ETHERNET = bytes(range(12))
PORTS = struct.pack(">HH", 1, 2)
FIN_PSH_ACK_CWR = 0x99


def ones_complement_sum(data: bytes) -> int:
    """Return the sum as RFC 1071 has it."""
    total = 0
    for high, low in zip(data[::2], data[1::2] + b"\0" * (len(data) % 2), strict=True):
        total += high << 8 | low
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip_header(version: int, payload: int, *, protocol: int = 6) -> bytes:
    if version == 4:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + payload, 0xFFFE, 0, 64, protocol, 0, b"abcd", b"efgh"
        )
        return header[:10] + struct.pack(">H", 0xFFFF - ones_complement_sum(header)) + header[12:]
    return struct.pack(">IHBB16s16s", 6 << 28, payload, protocol, 64, bytes(range(16)), bytes(range(16, 32)))


def pseudo_header(network: bytes, length: int, protocol: int = 6) -> bytes:
    addresses = network[12:20] if network[0] >> 4 == 4 else network[8:40]
    return addresses + struct.pack(">HH", protocol, length)


def tcp_frame(version: int, payload: bytes, *, vlan: bytes = b"", options: bytes = b"") -> tuple[bytes, int]:
    """Return a frame as a driver gives it that leaves the checksum to the device, and where TCP begins."""
    length = 20 + len(options) + len(payload)
    network = ip_header(version, length)
    partial = ones_complement_sum(pseudo_header(network, length))
    tcp = PORTS + struct.pack(
        ">IIBBHHH", 0xFFFFFF00, 7, (20 + len(options)) // 4 << 4, FIN_PSH_ACK_CWR, 100, partial, 0
    )
    start = ETHERNET + vlan + struct.pack(">H", 0x0800 if version == 4 else 0x86DD) + network
    return start + tcp + options + payload, len(start)


def header(start: int, *, kind: int = 0, size: int = 0, flags: int = NEEDS_CSUM, offset: int = 16) -> bytes:
    return HEADER.pack(flags, kind, start + 20, size, start, offset, 0)


def udp_frame(version: int, payload: bytes) -> tuple[bytes, int]:
    """Return the same of UDP."""
    length = 8 + len(payload)
    network = ip_header(version, length, protocol=17)
    partial = ones_complement_sum(pseudo_header(network, length, 17))
    start = ETHERNET + struct.pack(">H", 0x0800 if version == 4 else 0x86DD) + network
    return start + PORTS + struct.pack(">HH", length, partial) + payload, len(start)


def check_tcp(frame: bytes, start: int, network: int) -> bytes:
    """Fail unless lengths and checksums of a frame are right; return its TCP segment."""
    assert frame[:12] == NOTHING_LEFT
    data = frame[12:]
    ip, tcp = data[network:start], data[start:]
    if ip[0] >> 4 == 4:
        assert struct.unpack_from(">H", ip, 2) == (len(ip) + len(tcp),)
        assert ones_complement_sum(ip) == 0xFFFF
    else:
        assert struct.unpack_from(">H", ip, 4) == (len(tcp),)
    assert ones_complement_sum(pseudo_header(ip, len(tcp)) + tcp) == 0xFFFF
    return tcp


@given(st.binary(max_size=200))
def test_checksum(data: bytes) -> None:
    assert checksum(data) % 0xFFFF == (0xFFFF - ones_complement_sum(data)) % 0xFFFF
    assert checksum(data) != 0


@given(st.sampled_from([4, 6]), st.binary(max_size=300), st.sampled_from([b"", b"\x81\x00\x00\x05"]))
def test_checksum_of_a_frame(version: int, payload: bytes, vlan: bytes) -> None:
    data, start = tcp_frame(version, payload, vlan=vlan)
    (frame,) = finish(header(start) + data)
    tcp = check_tcp(frame, start, 14 + len(vlan))
    assert tcp[20:] == payload


@given(
    st.sampled_from([4, 6]),
    st.integers(0, 3000).map(lambda size: Random(size).randbytes(size)),
    st.integers(48, 400),
    st.sampled_from([b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x07\x81\x00\x00\x05"]),
    st.sampled_from([b"", bytes(12)]),
)
def test_segments(version: int, payload: bytes, size: int, vlan: bytes, options: bytes) -> None:
    data, start = tcp_frame(version, payload, vlan=vlan, options=options)
    kind = GsoType.TCPV4 if version == 4 else GsoType.TCPV6
    frames = finish(header(start, kind=kind | GSO_ECN, size=size) + data)
    assert len(frames) == max(-(-len(payload) // size), 1)
    got = b""
    for number, frame in enumerate(frames):
        tcp = check_tcp(frame, start, 14 + len(vlan))
        sequence, _, offset, flags = struct.unpack_from(">IIBB", tcp, 4)
        assert sequence == (0xFFFFFF00 + len(got)) % (1 << 32)
        assert offset >> 4 == (20 + len(options)) // 4
        first, last = number == 0, number == len(frames) - 1
        assert flags == 0x10 | (0x80 if first else 0) | (0x09 if last else 0)
        if version == 4:
            assert struct.unpack_from(">H", frame, 12 + 14 + len(vlan) + 4) == ((0xFFFE + number) % 65536,)
        assert frame[12 : 12 + 12 + len(vlan)] == ETHERNET + vlan
        part = tcp[20 + len(options) :]
        assert len(part) == size or last
        got += part
    assert got == payload


@given(
    st.sampled_from([4, 6]),
    st.integers(0, 3000).map(lambda size: Random(size).randbytes(size)),
    st.integers(24, 400),
)
def test_datagrams(version: int, payload: bytes, size: int) -> None:
    data, start = udp_frame(version, payload)
    given = header(start, kind=GsoType.UDP_L4, size=size, offset=6)
    checked, _ = check(given, len(data))
    frames = finish(checked + data)
    assert len(frames) == max(-(-len(payload) // size), 1)
    got = b""
    for number, frame in enumerate(frames):
        assert frame[:12] == NOTHING_LEFT
        ip, udp = frame[12 + 14 : 12 + start], frame[12 + start :]
        assert struct.unpack_from(">H", ip, 2 if version == 4 else 4) == (
            len(udp) + (20 if version == 4 else 0),
        )
        if version == 4:
            assert ones_complement_sum(ip) == 0xFFFF
            assert struct.unpack_from(">H", ip, 4) == ((0xFFFE + number) % 65536,)
        assert udp[:6] == PORTS + struct.pack(">H", len(udp))
        assert ones_complement_sum(pseudo_header(ip, len(udp), 17) + udp) == 0xFFFF
        assert len(udp) == 8 + size or number == len(frames) - 1
        got += udp[8:]
    assert got == payload


@pytest.mark.parametrize("kind", [GsoType.TCPV4, GsoType.TCPV6, GsoType.UDP_L4])
@pytest.mark.parametrize("length", [0, 1, 1400, 1401, 60000])
def test_bytes_on_a_wire(kind: GsoType, length: int) -> None:
    version = 6 if kind == GsoType.TCPV6 else 4
    data, start = (udp_frame if kind == GsoType.UDP_L4 else tcp_frame)(version, bytes(length))
    frame = header(start, kind=kind, size=1400) + data
    assert wire_bytes(frame) == sum(map(len, finish(frame)))
    assert wire_bytes(NOTHING_LEFT + data) == len(data) + 12


def test_frame_that_leaves_nothing_stays_as_it_is() -> None:
    frame = NOTHING_LEFT + ETHERNET + b"data"
    assert finish(frame) == [frame]


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (0, NetFeature.GUEST_CSUM),
        (GsoType.TCPV4, NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4),
        (GsoType.TCPV6, NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO6),
        (
            GsoType.TCPV6 | GSO_ECN,
            NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO6 | NetFeature.GUEST_ECN,
        ),
        (GsoType.UDP_L4, NetFeature.GUEST_CSUM | NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6),
    ],
)
def test_what_a_guest_must_take(kind: int, needed: NetFeature) -> None:
    given = header(34, kind=kind, size=1448)
    assert check(given, 2000) == (given, needed)


def test_header_of_a_hostile_guest_is_cleaned() -> None:
    assert check(HEADER.pack(0, 0, 1, 2, 3, 4, 5), 100) == (NOTHING_LEFT, NetFeature.NONE)
    assert check(HEADER.pack(HeaderFlag.DATA_VALID, 0, 0, 0, 0, 1, 0), 100) == (NOTHING_LEFT, NetFeature.NONE)
    claimed = HEADER.pack(NEEDS_CSUM | HeaderFlag.DATA_VALID | 0xF0, 0, 54, 0, 34, 16, 9)
    assert check(claimed, 100)[0] == HEADER.pack(NEEDS_CSUM, 0, 54, 0, 34, 16, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (header(50, offset=49), "a checksum at 50"),
        (header(34, kind=GsoType.UDP, size=1448), "segmentation of kind 0x3"),
        (header(34, kind=0x7F, size=1448), "segmentation of kind 0x7f"),
        (header(34, kind=GSO_ECN, size=1448), "segmentation of kind 0x80"),
        (header(34, kind=GsoType.TCPV4, size=1448, flags=0), "with flags 0x0"),
        (header(34, kind=GsoType.TCPV4, size=47), "segments of 47 bytes"),
        (header(34, kind=GsoType.UDP_L4 | GSO_ECN, size=1448), "segmentation of kind 0x85"),
        (header(34, kind=GsoType.UDP_L4, size=0), "segments of 0 bytes"),
    ],
)
def test_headers_that_no_driver_may_write(wrong: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(wrong, 100)


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=14, max_size=200))
def test_any_header_before_anything(wrong: bytes, data: bytes) -> None:
    try:
        checked, _ = check(wrong, len(data))
        frames = finish(checked + data)
    except ValueError:
        return
    assert all(frame[:12] == NOTHING_LEFT for frame in frames)
    assert len(frames) <= (MOST_DATAGRAMS if checked[1] == GsoType.UDP_L4 else 5)


@given(
    st.integers(0, 255).map(lambda kind: header(34, kind=kind, size=1000)),
    st.integers(0, 80),
    st.binary(min_size=1, max_size=3),
)
def test_frames_that_are_not_what_their_header_says(start: bytes, at: int, wrong: bytes) -> None:
    data, _ = tcp_frame(4, bytes(30))
    data = data[:at] + wrong + data[at + len(wrong) :]
    try:
        checked, _ = check(start, len(data))
        finish(checked + data)
    except ValueError:
        return
