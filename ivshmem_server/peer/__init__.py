"""The client library: a host process as a peer of guests and of other programs."""

from ivshmem_server.peer.changes import Change, PeerJoined, PeerLeft
from ivshmem_server.peer.connection import connect
from ivshmem_server.peer.memory import PlainPeer, UnusableMemoryError, memory_path, open_memory
from ivshmem_server.peer.peer import NoSuchPeerError, NoSuchVectorError, Peer

__all__ = [
    "Change",
    "NoSuchPeerError",
    "NoSuchVectorError",
    "Peer",
    "PeerJoined",
    "PeerLeft",
    "PlainPeer",
    "UnusableMemoryError",
    "connect",
    "memory_path",
    "open_memory",
]
