"""The ivshmem server, its peers and their command lines."""

from ivshmem_server.memory import MemoryUnavailableError, SharedMemory
from ivshmem_server.peer import (
    Change,
    NoSuchPeerError,
    NoSuchVectorError,
    Peer,
    PeerJoined,
    PeerLeft,
    PlainPeer,
    UnusableMemoryError,
    connect,
    open_memory,
)
from ivshmem_server.server import Client, IvshmemServer
from ivshmem_server.status import status_document
from protocol.errors import RemoteProtocolError

__all__ = [
    "Change",
    "Client",
    "IvshmemServer",
    "MemoryUnavailableError",
    "NoSuchPeerError",
    "NoSuchVectorError",
    "Peer",
    "PeerJoined",
    "PeerLeft",
    "PlainPeer",
    "RemoteProtocolError",
    "SharedMemory",
    "UnusableMemoryError",
    "connect",
    "open_memory",
    "status_document",
]
