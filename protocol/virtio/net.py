"""Network devices: features, configuration, headers, commands (virtio 1.3, section 5.1).

Everything is little-endian, as for all drivers that turn VERSION_1 on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from construct import Bytes, Int8ul, Int16ul, Int32ul, Struct

from protocol.errors import RemoteProtocolError
from protocol.virtio.bits import Bits
from protocol.virtio.config_space import ConfigSpace
from protocol.words import plural

MAC_SIZE = 6
MIN_MTU = 68
"""The smallest MTU that a device may have (section 5.1.4.1)."""
MAX_MTU = 65535
MAX_QUEUE_PAIRS = 0x8000


class NetFeature(Bits):
    """Feature bits of network devices (section 5.1.3).

    HOST_* are frames that the device accepts from its driver, GUEST_* the reverse.
    """

    NONE = 0
    CSUM = 1 << 0
    """The device accepts frames with a partial checksum."""
    GUEST_CSUM = 1 << 1
    """The driver accepts frames with a partial checksum."""
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    HASH_TUNNEL = 1 << 51
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    SPEED_DUPLEX = 1 << 63


HOST_OFFLOADS = (
    NetFeature.CSUM
    | NetFeature.HOST_TSO4
    | NetFeature.HOST_TSO6
    | NetFeature.HOST_ECN
    | NetFeature.HOST_UFO
    | NetFeature.HOST_USO
)
"""Work that a driver may leave to its device."""

GUEST_OFFLOADS = (
    NetFeature.GUEST_CSUM
    | NetFeature.GUEST_TSO4
    | NetFeature.GUEST_TSO6
    | NetFeature.GUEST_ECN
    | NetFeature.GUEST_UFO
    | NetFeature.GUEST_USO4
    | NetFeature.GUEST_USO6
)
"""Work that a device may leave to its driver; CTRL_GUEST_OFFLOADS turns each on and off."""


_REQUIRED: tuple[tuple[NetFeature, NetFeature], ...] = (
    (NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6 | NetFeature.GUEST_UFO, NetFeature.GUEST_CSUM),
    (NetFeature.GUEST_USO4 | NetFeature.GUEST_USO6, NetFeature.GUEST_CSUM),
    (NetFeature.GUEST_ECN, NetFeature.GUEST_TSO4 | NetFeature.GUEST_TSO6),
    (NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6 | NetFeature.HOST_UFO, NetFeature.CSUM),
    (NetFeature.HOST_USO, NetFeature.CSUM),
    (NetFeature.HOST_ECN, NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6),
    (NetFeature.RSC_EXT, NetFeature.HOST_TSO4 | NetFeature.HOST_TSO6),
    (NetFeature.CTRL_RX | NetFeature.CTRL_VLAN | NetFeature.CTRL_RX_EXTRA, NetFeature.CTRL_VQ),
    (NetFeature.CTRL_MAC_ADDR | NetFeature.CTRL_GUEST_OFFLOADS, NetFeature.CTRL_VQ),
    (NetFeature.GUEST_ANNOUNCE | NetFeature.MQ | NetFeature.RSS, NetFeature.CTRL_VQ),
)
"""Features that each need one of the others (section 5.1.3.1); needed ones come first in the list."""


def without_lacking(offered: NetFeature) -> NetFeature:
    """Return `offered` without features that need one that is not offered.

    A device must not offer those (section 2.2.2), and Linux's driver refuses a device that does.
    """
    for features, needed in _REQUIRED:
        if not offered & needed:
            offered = offered.without(features)
    return offered


class NetStatus(IntFlag):
    """The configuration space's `status`."""

    LINK_UP = 1
    ANNOUNCE = 2


# The header before each frame (section 5.1.6)

HEADER = struct.Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
GSO_TYPE_OFFSET = 1
NUM_BUFFERS_OFFSET = 10
LEGACY_HEADER_SIZE = 10
"""Bytes for a driver with neither VERSION_1 nor MRG_RXBUF: without num_buffers."""


class HeaderFlag(IntFlag):
    """The header's `flags`."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4


class GsoType(IntEnum):
    """The header's `gso_type`, without the bit GSO_ECN."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5


GSO_ECN = 0x80
"""The bit of `gso_type` for TCP segments with ECN."""


def header_size(features: int) -> int:
    """Return the size of the header before each frame, with `features` negotiated."""
    return HEADER.size if features & (_VERSION_1 | NetFeature.MRG_RXBUF) else LEGACY_HEADER_SIZE


_VERSION_1 = 1 << 32


# Queues (section 5.1.2)


def control_queue(features: int, max_pairs: int) -> int:
    """Return the index of the control queue of a device with `max_pairs` pairs, as its driver counts."""
    return 2 * max_pairs if features & NetFeature.MQ else 2


# The control queue (section 5.1.6.5)

CONTROL_HEADER = struct.Struct("<BB")
"""class, command; the command's data follow, then a byte that the device writes: ControlStatus."""


class ControlClass(IntEnum):
    """Classes of control commands."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6


class ControlStatus(IntEnum):
    """The answer to a control command."""

    OK = 0
    ERR = 1


class RxCommand(IntEnum):
    """Commands of the class RX; their data are one byte, 1 for on and 0 for off."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class MacCommand(IntEnum):
    """Commands of the class MAC: TABLE_SET with two tables, unicast first; ADDR_SET with an address."""

    TABLE_SET = 0
    ADDR_SET = 1


class VlanCommand(IntEnum):
    """Commands of the class VLAN; their data are an id of 16 bits."""

    ADD = 0
    DEL = 1


ANNOUNCE_ACK = 0
"""The command of the class ANNOUNCE; it has no data."""
MQ_VQ_PAIRS_SET = 0
"""A command of the class MQ; its data are the number of queue pairs to use, 16 bits."""
GUEST_OFFLOADS_SET = 0
"""The command of the class GUEST_OFFLOADS; its data are the GUEST_OFFLOADS that are on, 64 bits."""

VLAN_IDS = 4096

_COUNT = struct.Struct("<I")


def mac_tables(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the unicast and the multicast addresses of a TABLE_SET.

    Raises RemoteProtocolError for data that are too short or too long.
    """
    unicast, rest = _mac_table(data)
    multicast, rest = _mac_table(rest)
    if rest:
        raise RemoteProtocolError(f"{plural(len(rest), 'byte')} after the two tables of addresses")
    return unicast, multicast


def _mac_table(data: bytes) -> tuple[list[bytes], bytes]:
    if len(data) < _COUNT.size:
        raise RemoteProtocolError(f"{len(data)} bytes are too few for a table of addresses")
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + count * MAC_SIZE
    if len(data) < end:
        raise RemoteProtocolError(f"a table of {count} addresses in {plural(len(data), 'byte')}")
    return [data[at : at + MAC_SIZE] for at in range(_COUNT.size, end, MAC_SIZE)], data[end:]


def build_mac_tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    """Return the data of a TABLE_SET."""
    return b"".join(_COUNT.pack(len(table)) + b"".join(table) for table in (unicast, multicast))


# The configuration space (section 5.1.4)

SPEED_UNKNOWN = 0xFFFFFFFF
DUPLEX_UNKNOWN = 0xFF


@dataclass(frozen=True)
class NetConfig(ConfigSpace):
    """The configuration space; the features decide which fields a driver may read."""

    owner = "a network device"
    layout = Struct(
        "mac" / Bytes(MAC_SIZE),
        "status" / Int16ul,
        "max_virtqueue_pairs" / Int16ul,
        "mtu" / Int16ul,
        "speed" / Int32ul,
        "duplex" / Int8ul,
        "rss_max_key_size" / Int8ul,
        "rss_max_indirection_table_length" / Int16ul,
        "supported_hash_types" / Int32ul,
    )

    mac: bytes = bytes(MAC_SIZE)
    status: int = 0
    max_virtqueue_pairs: int = 1
    mtu: int = 0
    speed: int = SPEED_UNKNOWN
    """In Mbit/s."""
    duplex: int = DUPLEX_UNKNOWN
    rss_max_key_size: int = 0
    rss_max_indirection_table_length: int = 0
    supported_hash_types: int = 0


CONFIG_SIZE: int = NetConfig.layout.sizeof()
