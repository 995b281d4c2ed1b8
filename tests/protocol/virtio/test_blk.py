"""Layouts of block devices, against the specification's offsets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.blk import (
    CONFIG_SIZE,
    REQUEST_HEADER,
    SEGMENT,
    WRITEBACK_OFFSET,
    BlkConfig,
    BlkFeature,
    RequestStatus,
    RequestType,
)

# struct virtio_blk_config, field by field: where it is and how long it is.
PLACES = {
    "capacity": (0, 8),
    "size_max": (8, 4),
    "seg_max": (12, 4),
    "cylinders": (16, 2),
    "heads": (18, 1),
    "sectors": (19, 1),
    "blk_size": (20, 4),
    "physical_block_exp": (24, 1),
    "alignment_offset": (25, 1),
    "min_io_size": (26, 2),
    "opt_io_size": (28, 4),
    "writeback": (32, 1),
    "num_queues": (34, 2),
    "max_discard_sectors": (36, 4),
    "max_discard_seg": (40, 4),
    "discard_sector_alignment": (44, 4),
    "max_write_zeroes_sectors": (48, 4),
    "max_write_zeroes_seg": (52, 4),
    "write_zeroes_may_unmap": (56, 1),
    "max_secure_erase_sectors": (60, 4),
    "max_secure_erase_seg": (64, 4),
    "secure_erase_sector_alignment": (68, 4),
}

NOTHING = BlkConfig(blk_size=0, num_queues=0)


def test_config_has_every_field_and_ends_after_the_last() -> None:
    assert set(PLACES) == set(BlkConfig.__dataclass_fields__)
    assert len(NOTHING.encode()) == CONFIG_SIZE == 72


@pytest.mark.parametrize("name", PLACES)
def test_config_field_is_little_endian_where_the_specification_has_it(name: str) -> None:
    offset, size = PLACES[name]
    value = int.from_bytes(range(1, size + 1), "little")
    data = BlkConfig(**{"blk_size": 0, "num_queues": 0, name: value}).encode()
    expected = bytes(offset) + bytes(range(1, size + 1))
    assert data == expected.ljust(CONFIG_SIZE, b"\0")


def test_writeback_is_where_drivers_write_it() -> None:
    assert PLACES["writeback"] == (WRITEBACK_OFFSET, 1)


@given(
    st.builds(BlkConfig, **{name: st.integers(0, 2 ** (8 * size) - 1) for name, (_, size) in PLACES.items()})
)
def test_decode_reverses_encode(config: BlkConfig) -> None:
    assert BlkConfig.decode(config.encode()) == config


def test_field_that_does_not_fit_is_our_error() -> None:
    with pytest.raises(LocalProtocolError, match="num_queues"):
        BlkConfig(num_queues=1 << 16).encode()


def test_too_short_a_config_is_their_error() -> None:
    with pytest.raises(RemoteProtocolError, match="not a configuration space of a block device"):
        BlkConfig.decode(bytes(CONFIG_SIZE - 1))


def test_longer_config_of_a_newer_device_is_understood() -> None:
    assert BlkConfig.decode(BlkConfig(capacity=7).encode() + b"zoned").capacity == 7


def test_request_header_and_segment() -> None:
    assert REQUEST_HEADER.pack(1, 2, 3) == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
    assert SEGMENT.pack(1, 2, 3) == bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])


def test_numbers_are_the_specification_s() -> None:
    bits = {feature.name: feature.bit_length() - 1 for feature in BlkFeature if feature}
    assert bits == {
        "BARRIER": 0,
        "SIZE_MAX": 1,
        "SEG_MAX": 2,
        "GEOMETRY": 4,
        "RO": 5,
        "BLK_SIZE": 6,
        "SCSI": 7,
        "FLUSH": 9,
        "TOPOLOGY": 10,
        "CONFIG_WCE": 11,
        "MQ": 12,
        "DISCARD": 13,
        "WRITE_ZEROES": 14,
        "LIFETIME": 15,
        "SECURE_ERASE": 16,
        "ZONED": 17,
    }
    assert {kind.name: kind.value for kind in RequestType} == {
        "IN": 0,
        "OUT": 1,
        "FLUSH": 4,
        "GET_ID": 8,
        "GET_LIFETIME": 10,
        "DISCARD": 11,
        "WRITE_ZEROES": 13,
        "SECURE_ERASE": 14,
    }
    assert [status.name for status in sorted(RequestStatus)] == ["OK", "IOERR", "UNSUPP"]
    assert [*map(int, sorted(RequestStatus))] == [0, 1, 2]
