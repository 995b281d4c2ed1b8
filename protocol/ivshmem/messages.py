"""The ivshmem client-server protocol's one message: eight bytes, sometimes with a file descriptor.

QEMU docs/specs/ivshmem-spec.rst, "The ivshmem Client-Server Protocol", version 0.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from protocol.errors import LocalProtocolError

MESSAGE_SIZE = 8
"""Bytes of every message: one little-endian signed integer."""

PROTOCOL_VERSION = 0
"""The only version there is since QEMU 2.5."""

MEMORY_MESSAGE = -1
"""The value that comes with the shared memory's file descriptor."""

MAX_ID = 0xFFFF
"""Highest peer id: the Doorbell register has 16 bits for it."""

MAX_VECTORS = 2048
"""Most vectors a peer may have: the MSI-X table of a PCI function ends there."""

_MESSAGE = struct.Struct("<q")


class Refusal(IntEnum):
    """Why a server refuses a client, sent in the place of the protocol version.

    The protocol knows no refusal, and QEMU spins for ever on a server that just closes; an unknown
    version makes every client give up with an error that shows the number. These numbers are
    qemu-companion's own; no version of the protocol will ever be negative.
    """

    FULL = -2
    NOT_ALLOWED = -3
    NO_RESOURCES = -4
    IDS_EXHAUSTED = -5

    @property
    def text(self) -> str:
        """What the number means, for people."""
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
        raise LocalProtocolError(f"{value} does not fit a message of 64 bits") from None


def decode(data: bytes) -> int:
    """Return the value of a message. Raises LocalProtocolError unless `data` is exactly eight bytes."""
    if len(data) != MESSAGE_SIZE:
        raise LocalProtocolError(f"a message has {MESSAGE_SIZE} bytes, not {len(data)}")
    value: int = _MESSAGE.unpack(data)[0]
    return value
