"""Block devices: features, configuration, requests (virtio 1.3, section 5.2).

Everything is little-endian; a sector is always 512 bytes, whatever the block size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from construct import Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from protocol.virtio.bits import Bits
from protocol.virtio.config_space import ConfigSpace

SECTOR_SIZE = 512
ID_SIZE = 20
"""Bytes of the device's id string; a shorter one is padded with zeros."""


class BlkFeature(Bits):
    """Feature bits of block devices (section 5.2.3)."""

    NONE = 0
    BARRIER = 1 << 0
    """Legacy."""
    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    SCSI = 1 << 7
    """Legacy."""
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


class RequestType(IntEnum):
    """Types of requests (section 5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    GET_LIFETIME = 10
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


FLUSH_OUT = 5
"""The type that legacy drivers may send in place of FLUSH."""


class RequestStatus(IntEnum):
    """The status, the last byte of a request, which the device writes."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


REQUEST_HEADER = struct.Struct("<IIQ")
"""type, reserved, sector; data and status follow."""

SEGMENT = struct.Struct("<QII")
"""An element of the data of DISCARD and WRITE_ZEROES: sector, number of sectors, flags."""
SEGMENT_UNMAP = 1


@dataclass(frozen=True)
class BlkConfig(ConfigSpace):
    """The configuration space (section 5.2.4); the features decide which fields a driver may read.

    `capacity` and the fields named `sectors` are in sectors, `min_io_size` and `opt_io_size` in blocks of
    `blk_size` bytes; a physical block has 2 ** `physical_block_exp` of those.
    """

    owner = "a block device"
    layout = Struct(
        "capacity" / Int64ul,
        "size_max" / Int32ul,
        "seg_max" / Int32ul,
        "cylinders" / Int16ul,
        "heads" / Int8ul,
        "sectors" / Int8ul,
        "blk_size" / Int32ul,
        "physical_block_exp" / Int8ul,
        "alignment_offset" / Int8ul,
        "min_io_size" / Int16ul,
        "opt_io_size" / Int32ul,
        "writeback" / Int8ul,
        Padding(1),
        "num_queues" / Int16ul,
        "max_discard_sectors" / Int32ul,
        "max_discard_seg" / Int32ul,
        "discard_sector_alignment" / Int32ul,
        "max_write_zeroes_sectors" / Int32ul,
        "max_write_zeroes_seg" / Int32ul,
        "write_zeroes_may_unmap" / Int8ul,
        Padding(3),
        "max_secure_erase_sectors" / Int32ul,
        "max_secure_erase_seg" / Int32ul,
        "secure_erase_sector_alignment" / Int32ul,
    )

    capacity: int = 0
    size_max: int = 0
    seg_max: int = 0
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    blk_size: int = SECTOR_SIZE
    physical_block_exp: int = 0
    alignment_offset: int = 0
    min_io_size: int = 0
    opt_io_size: int = 0
    writeback: int = 0
    num_queues: int = 1
    max_discard_sectors: int = 0
    max_discard_seg: int = 0
    discard_sector_alignment: int = 0
    max_write_zeroes_sectors: int = 0
    max_write_zeroes_seg: int = 0
    write_zeroes_may_unmap: int = 0
    max_secure_erase_sectors: int = 0
    max_secure_erase_seg: int = 0
    secure_erase_sector_alignment: int = 0


CONFIG_SIZE: int = BlkConfig.layout.sizeof()
WRITEBACK_OFFSET = 32
"""Offset of `writeback`, the only field that a driver may write, and only with CONFIG_WCE."""
