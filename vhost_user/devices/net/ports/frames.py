"""Frames that a network device makes or inspects, its filter, and its counters."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from protocol.virtio.net import MAC_SIZE, RxCommand

FILTERED_BYTES = 2 * MAC_SIZE + 4
"""How much of a frame's front decides: both addresses, and a VLAN tag if there is one."""

BROADCAST = b"\xff" * MAC_SIZE
_VLAN_TAG = b"\x81\x00"
_VLAN_MASK = 0xFFF

ETHERNET_HEADER = 14
MIN_FRAME = 60
"""Bytes of the shortest Ethernet frame, without its checksum."""

LARGEST_ACKNOWLEDGEMENT = ETHERNET_HEADER + 40 + 60
"""Bytes of TCP over IPv6 without data, and with as many options as there can be."""

_TAG_BYTES = {b"\x81\x00": 4, b"\x88\xa8": 8}
"""What VLAN tags add to an Ethernet header, by the type of the first one: there may be a second one then."""

_RARP = struct.Struct(">6s6sHHHBBH6s4s6s4s")
_ETHERTYPE_RARP = 0x8035
_ETHERNET, _IPV4 = 1, 0x0800
_TYPE_IPV4, _TYPE_IPV6 = b"\x08\x00", b"\x86\xdd"
_NO_OPTIONS = 0x45
_TCP, _TCP_SIZE = 6, 20
_ACK = 0x10
_WITH_PORTS = {b"\x06", b"\x11"}
"""TCP and UDP."""
_REQUEST_REVERSE = 3


def is_group(mac: bytes) -> bool:
    """Tell whether an address is that of several stations, or of all."""
    return bool(mac[0] & 1)


def tag_bytes(front: bytes) -> int:
    """Return how many bytes of VLAN tags a frame has, of which `front` are the first 14 or more."""
    return _TAG_BYTES.get(front[2 * MAC_SIZE : ETHERNET_HEADER], 0)


def only_acknowledges(frame: bytes) -> bool:
    """Tell whether a frame is TCP without data, of which the only flag is ACK."""
    kind, ip = frame[2 * MAC_SIZE : ETHERNET_HEADER], frame[ETHERNET_HEADER:]
    if kind == _TYPE_IPV4 and ip[0:1] == bytes([_NO_OPTIONS]) and ip[9:10] == bytes([_TCP]):
        tcp, length = ip[20:], int.from_bytes(ip[2:4], "big") - 20
    elif kind == _TYPE_IPV6 and ip[6:7] == bytes([_TCP]):
        tcp, length = ip[40:], int.from_bytes(ip[4:6], "big")
    else:
        return False
    return len(tcp) >= _TCP_SIZE and tcp[13] == _ACK and length == (tcp[12] >> 4) * 4


def flow_of(frame: bytes) -> bytes:
    """Return what names the conversation of TCP or UDP that a frame belongs to, either way; b"": none."""
    kind, ip = frame[2 * MAC_SIZE : ETHERNET_HEADER], frame[ETHERNET_HEADER:]
    if kind == _TYPE_IPV4 and ip[0:1] == bytes([_NO_OPTIONS]) and ip[9:10] in _WITH_PORTS:
        ends = ip[12:16] + ip[20:22], ip[16:20] + ip[22:24]
    elif kind == _TYPE_IPV6 and ip[6:7] in _WITH_PORTS:
        ends = ip[8:24] + ip[40:42], ip[24:40] + ip[42:44]
    else:
        return b""
    return min(ends) + max(ends)


def rarp(mac: bytes) -> bytes:
    """Return the broadcast by which the switches of a network learn where `mac` is (RFC 903)."""
    anywhere = bytes(4)
    frame = _RARP.pack(
        *(BROADCAST, mac, _ETHERTYPE_RARP),
        *(_ETHERNET, _IPV4, 6, 4, _REQUEST_REVERSE, mac, anywhere, mac, anywhere),
    )
    return frame.ljust(MIN_FRAME, b"\0")


class Filter:
    """Which frames a guest wants (virtio 1.3, sections 5.1.6.5.1 to 5.1.6.5.3): all, until a driver says so.

    `modes` are those of RxCommand that are on. A frame with a VLAN tag has to be of one of `vlans`,
    unless that is None.
    """

    def __init__(self, mac: bytes) -> None:
        """`mac` is the guest's own address, which `mac` may be set to later, too."""
        self.mac = mac
        self.modes: set[RxCommand] = {RxCommand.PROMISC}
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.vlans: set[int] | None = None

    @property
    def is_open(self) -> bool:
        """True while everything goes through."""
        return RxCommand.PROMISC in self.modes

    def wants(self, front: bytes) -> bool:
        """Tell whether a frame goes through, whose first FILTERED_BYTES (or fewer) are `front`."""
        if self.is_open:
            return True
        if self.vlans is not None and front[2 * MAC_SIZE : 2 * MAC_SIZE + 2] == _VLAN_TAG:
            vlan = int.from_bytes(front[2 * MAC_SIZE + 2 :], "big") & _VLAN_MASK
            if vlan not in self.vlans:
                return False
        target = front[:MAC_SIZE]
        if target == BROADCAST:
            return RxCommand.NOBCAST not in self.modes
        if is_group(target):
            return self._wants(target, RxCommand.NOMULTI, RxCommand.ALLMULTI, self.multicast)
        return self._wants(target, RxCommand.NOUNI, RxCommand.ALLUNI, self.unicast | {self.mac})

    def _wants(self, target: bytes, none: RxCommand, every: RxCommand, table: frozenset[bytes]) -> bool:
        return none not in self.modes and (every in self.modes or target in table)


@dataclass(slots=True)
class Counters:
    """Frames of one direction, and their bytes without the virtio header."""

    frames: int = 0
    bytes: int = 0
    dropped: int = 0
    """Frames that could not be taken or given."""
    filtered: int = 0
    """Frames to the guest that it did not want."""
