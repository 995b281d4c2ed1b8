"""The message of the ivshmem protocol: eight bytes, with or without a descriptor.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem Client-Server Protocol", version 0.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from protocol.errors import LocalProtocolError

MESSAGE_SIZE = 8
"""Bytes of a message: one little-endian signed integer."""

PROTOCOL_VERSION = 0
"""The only version since QEMU 2.5."""

MEMORY_MESSAGE = -1
"""The value of the message with the shared memory's file descriptor."""

MAX_ID = 0xFFFF
"""Highest peer id: the Doorbell register has 16 bits for the id."""

MAX_VECTORS = 2048
"""Most vectors of a peer: an MSI-X table has no more entries."""

_MESSAGE = struct.Struct("<q")


class Refusal(IntEnum):
    """The reason why a server refuses a client, sent in place of the protocol version.

    The protocol has no refusal, and QEMU spins for ever on a server that only closes; an unknown version
    makes each client end with an error that shows the number. These numbers are qemu-companion's own;
    versions of the protocol are not negative.
    """

    FULL = -2
    NOT_ALLOWED = -3
    NO_RESOURCES = -4
    IDS_EXHAUSTED = -5

    @property
    def text(self) -> str:
        """The reason in words."""
        return _REFUSAL_TEXTS[self]


_REFUSAL_TEXTS = {
    Refusal.FULL: "the server has as many peers as --max-peers allows",
    Refusal.NOT_ALLOWED: "the server does not allow this user or group (--allow-uid, --allow-gid)",
    Refusal.NO_RESOURCES: "the server is out of file descriptors or memory; raise its limit (ulimit -n)",
    Refusal.IDS_EXHAUSTED: (
        "every peer id was used, and a connected peer has seen it leave; restart the longest-connected peers,"
        " or start the server with --sticky"
    ),
}


def encode(value: int) -> bytes:
    """Return the eight bytes of a message. Raises LocalProtocolError if `value` does not fit."""
    try:
        return _MESSAGE.pack(value)
    except struct.error:
        raise LocalProtocolError(f"{value} does not fit into a message of 64 bits") from None


def decode(data: bytes) -> int:
    """Return the value of a message. Raises LocalProtocolError unless `data` is exactly eight bytes."""
    if len(data) != MESSAGE_SIZE:
        raise LocalProtocolError(f"a message has {MESSAGE_SIZE} bytes, not {len(data)}")
    value: int = _MESSAGE.unpack(data)[0]
    return value
