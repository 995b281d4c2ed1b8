"""Frames that a network device itself makes, or looks into."""

from __future__ import annotations

import struct

from protocol.virtio.net import MAC_SIZE
from vhost_user.devices.net_filter import BROADCAST

ETHERNET_HEADER = 14
MIN_FRAME = 60
"""Bytes of the shortest Ethernet frame, without its checksum."""

_TAG_BYTES = {b"\x81\x00": 4, b"\x88\xa8": 8}
"""What VLAN tags add to an Ethernet header, by the type of the first one: there may be a second one then."""

_RARP = struct.Struct(">6s6sHHHBBH6s4s6s4s")
_ETHERTYPE_RARP = 0x8035
_ETHERNET, _IPV4 = 1, 0x0800
_REQUEST_REVERSE = 3


def tag_bytes(front: bytes) -> int:
    """Return how many bytes of VLAN tags a frame has, of which `front` are the first 14 or more."""
    return _TAG_BYTES.get(front[2 * MAC_SIZE : ETHERNET_HEADER], 0)


def rarp(mac: bytes) -> bytes:
    """Return the broadcast by which the switches of a network learn where `mac` is (RFC 903)."""
    anywhere = bytes(4)
    frame = _RARP.pack(
        *(BROADCAST, mac, _ETHERTYPE_RARP),
        *(_ETHERNET, _IPV4, 6, 4, _REQUEST_REVERSE, mac, anywhere, mac, anywhere),
    )
    return frame.ljust(MIN_FRAME, b"\0")
