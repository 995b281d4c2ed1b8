"""Frames of ARP and ICMP (RFC 826, 791, 792)."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

BROADCAST = b"\xff" * 6
_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IP = struct.Struct("!BBHHHBBH4s4s")
_ICMP = struct.Struct("!BBHHH")
_IP_TYPE, _ARP_TYPE, _ICMP_PROTOCOL = 0x0800, 0x0806, 1
_ASK, _ANSWER = 1, 2
_ECHO, _ECHO_REPLY = 8, 0


class Host(NamedTuple):
    """Who has these addresses."""

    mac: bytes
    address: str


def who_has(address: str, asker: Host) -> bytes:
    """Return the frame that asks for the MAC address of an IP address."""
    return _arp(_ASK, asker, BROADCAST, Host(bytes(6), address))


def is_at(host: Host, asker: Host) -> bytes:
    """Return the frame that answers it: `host` has its address."""
    return _arp(_ANSWER, host, asker.mac, asker)


def echo(source: Host, to: Host, number: int, data: bytes) -> bytes:
    """Return the frame that asks for an echo."""
    return _icmp(_ECHO, source, to, number, data)


def echo_reply(source: Host, to: Host, number: int, data: bytes) -> bytes:
    """Return the frame that is one."""
    return _icmp(_ECHO_REPLY, source, to, number, data)


def ip_size(frame: bytes) -> int:
    """Return how large a frame is by its IP header, whose checksum has to be good."""
    header = frame[_ETHERNET.size :][: _IP.size]
    assert _checksum(header) == 0
    return _ETHERNET.size + int(_IP.unpack(header)[2])


def _arp(what: int, source: Host, to: bytes, target: Host) -> bytes:
    body = _ARP.pack(
        *(1, _IP_TYPE, 6, 4, what, source.mac, _ip(source.address), target.mac, _ip(target.address))
    )
    return _ETHERNET.pack(to, source.mac, _ARP_TYPE) + body


def _icmp(kind: int, source: Host, to: Host, number: int, data: bytes) -> bytes:
    message = bytearray(_ICMP.pack(kind, 0, 0, 0x1234, number) + data)
    struct.pack_into("!H", message, 2, _checksum(message))
    addresses = _ip(source.address), _ip(to.address)
    header = bytearray(
        _IP.pack(0x45, 0, _IP.size + len(message), number, 0, 64, _ICMP_PROTOCOL, 0, *addresses)
    )
    struct.pack_into("!H", header, 10, _checksum(header))
    return _ETHERNET.pack(to.mac, source.mac, _IP_TYPE) + bytes(header + message)


def _ip(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _checksum(data: bytes | bytearray) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{-(-len(data) // 2)}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
