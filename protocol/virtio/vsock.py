"""Socket devices: features, configuration, packets, events (virtio 1.3, section 5.10).

Everything is little-endian. A packet is a header and the payload, whose size is in the header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from construct import Int64ul, Struct

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.virtio.bits import Bits
from protocol.virtio.config_space import ConfigSpace
from protocol.words import plural

HOST_CID = 2
"""The host's CID for guests."""
FIRST_GUEST_CID = 3
LAST_GUEST_CID = 0xFFFF_FFFE
"""The CIDs 0 to 2 and 0xffffffff are reserved, and the upper half of the 64 bits is zero."""

RX_QUEUE, TX_QUEUE, EVENT_QUEUE = range(3)
"""The queues (section 5.10.2): to the guest, from the guest, events to the guest."""


class VsockFeature(Bits):
    """Feature bits of socket devices (section 5.10.3)."""

    NONE = 0
    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2


class SocketType(IntEnum):
    """Values of a packet's `type` (section 5.10.6.2)."""

    STREAM = 1
    SEQPACKET = 2


class Operation(IntEnum):
    """Values of a packet's `op` (section 5.10.6)."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(Bits):
    """The flags of SHUTDOWN: its sender will no longer receive, or send (section 5.10.6.5)."""

    NONE = 0
    RECEIVE = 1 << 0
    SEND = 1 << 1
    BOTH = RECEIVE | SEND


TRANSPORT_RESET = 0
"""The only event: all connections are lost, and the CID may have changed (section 5.10.6.7)."""
EVENT = struct.Struct("<I")
"""The event's number."""

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = _HEADER.size


class Header(NamedTuple):
    """The header of a packet (section 5.10.6). `decode()` checks no value."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int = 0
    """Bytes of payload."""
    type: int = SocketType.STREAM
    op: int = Operation.INVALID
    flags: int = 0
    buf_alloc: int = 0
    """The sender's buffer space for the connection, in bytes."""
    fwd_cnt: int = 0
    """Bytes of the connection that the sender has passed on so far, modulo 2 ** 32."""

    def encode(self) -> bytes:
        """Return the header's bytes. Raises LocalProtocolError for a value that does not fit."""
        try:
            return _HEADER.pack(*self)
        except struct.error as error:
            raise LocalProtocolError(f"{self} does not fit into a header: {error}") from error

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Return the header at the beginning of `data`. Raises RemoteProtocolError for too few bytes."""
        try:
            return cls._make(_HEADER.unpack_from(data))
        except struct.error:
            raise RemoteProtocolError(
                f"a packet of {plural(len(data), 'byte')}, less than its header"
            ) from None

    def answer(self, op: Operation) -> Header:
        """Return the header of an answer to this packet's sender, without credit."""
        return Header(self.dst_cid, self.src_cid, self.dst_port, self.src_port, type=self.type, op=op)


@dataclass(frozen=True)
class VsockConfig(ConfigSpace):
    """The configuration space (section 5.10.4)."""

    owner = "a socket device"
    layout = Struct("guest_cid" / Int64ul)

    guest_cid: int

    def encode(self) -> bytes:
        """Return the configuration space's bytes. Raises LocalProtocolError for a reserved CID."""
        if not FIRST_GUEST_CID <= self.guest_cid <= LAST_GUEST_CID:
            raise LocalProtocolError(f"a guest cannot have the CID {self.guest_cid}")
        return super().encode()


CONFIG_SIZE: int = VsockConfig.layout.sizeof()
