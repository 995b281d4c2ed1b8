"""The ivshmem client-server protocol and the device's registers; no I/O."""

from protocol.ivshmem.client_session import (
    ClientSession,
    Event,
    IdAssigned,
    MemoryReceived,
    PeerDisconnected,
    VectorReceived,
)
from protocol.ivshmem.messages import (
    MAX_ID,
    MAX_VECTORS,
    MEMORY_MESSAGE,
    MESSAGE_SIZE,
    PROTOCOL_VERSION,
    Refusal,
    decode,
    encode,
)
from protocol.ivshmem.registry import IdsExhaustedError, Member, Registry
from protocol.ivshmem.server_session import Announcement, Message, ServerSession

__all__ = [
    "MAX_ID",
    "MAX_VECTORS",
    "MEMORY_MESSAGE",
    "MESSAGE_SIZE",
    "PROTOCOL_VERSION",
    "Announcement",
    "ClientSession",
    "Event",
    "IdAssigned",
    "IdsExhaustedError",
    "Member",
    "MemoryReceived",
    "Message",
    "PeerDisconnected",
    "Refusal",
    "Registry",
    "ServerSession",
    "VectorReceived",
    "decode",
    "encode",
]
