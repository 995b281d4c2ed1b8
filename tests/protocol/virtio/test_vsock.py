"""Layouts of socket devices, against the specification's offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.vsock import (
    CONFIG_SIZE,
    EVENT,
    HEADER_SIZE,
    TRANSPORT_RESET,
    Header,
    Operation,
    Shutdown,
    SocketType,
    VsockConfig,
    VsockFeature,
)

# struct virtio_vsock_hdr, field by field: where it is and how long it is.
PLACES = {
    "src_cid": (0, 8),
    "dst_cid": (8, 8),
    "src_port": (16, 4),
    "dst_port": (20, 4),
    "length": (24, 4),
    "type": (28, 2),
    "op": (30, 2),
    "flags": (32, 4),
    "buf_alloc": (36, 4),
    "fwd_cnt": (40, 4),
}

NOTHING = Header(0, 0, 0, 0, type=0)


def test_header_has_every_field_and_ends_after_the_last() -> None:
    assert set(PLACES) == set(Header._fields)
    assert len(NOTHING.encode()) == HEADER_SIZE == 44


@pytest.mark.parametrize("name", PLACES)
def test_header_field_is_little_endian_where_the_specification_has_it(name: str) -> None:
    offset, size = PLACES[name]
    value = int.from_bytes(range(1, size + 1), "little")
    data = NOTHING._replace(**{name: value}).encode()
    assert data == (bytes(offset) + bytes(range(1, size + 1))).ljust(HEADER_SIZE, b"\0")


@given(st.tuples(*(st.integers(0, (1 << 8 * size) - 1) for _, size in PLACES.values())))
def test_header_comes_back_as_it_went(values: tuple[int, ...]) -> None:
    header = Header._make(values)
    assert Header.decode(header.encode() + b"payload") == header


@given(st.binary(max_size=HEADER_SIZE - 1))
def test_bytes_too_few_are_no_header(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a packet of {len(data)} bytes?,"):
        Header.decode(data)


def test_header_whose_value_does_not_fit_is_ours_to_mend() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        NOTHING._replace(length=1 << 32).encode()


def test_answer_goes_where_the_packet_came_from() -> None:
    answer = Header(3, 2, 1000, 80, 5, SocketType.SEQPACKET, Operation.RW, 1, 2, 3).answer(Operation.RST)
    assert answer == Header(2, 3, 80, 1000, 0, SocketType.SEQPACKET, Operation.RST, 0, 0, 0)


def test_numbers_are_the_specifications() -> None:
    assert [op.name for op in Operation] == [
        *("INVALID", "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST")
    ]
    assert [int(op) for op in Operation] == list(range(8))
    assert (SocketType.STREAM, SocketType.SEQPACKET) == (1, 2)
    assert (Shutdown.RECEIVE, Shutdown.SEND) == (1, 2)
    assert (VsockFeature.STREAM, VsockFeature.SEQPACKET, VsockFeature.NO_IMPLIED_STREAM) == (1, 2, 4)
    assert EVENT.pack(TRANSPORT_RESET) == bytes(4)


@given(st.integers(3, 0xFFFF_FFFE))
def test_config(cid: int) -> None:
    data = VsockConfig(cid).encode()
    assert data == cid.to_bytes(8, "little")
    assert len(data) == CONFIG_SIZE == 8
    assert VsockConfig.decode(data).guest_cid == cid


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, 1 << 32, -1])
def test_config_with_a_reserved_cid(cid: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"cannot have the CID {cid}"):
        VsockConfig(cid).encode()


def test_short_config() -> None:
    with pytest.raises(RemoteProtocolError, match="not a configuration space"):
        VsockConfig.decode(b"1234567")
