"""The ivshmem server, its peers and their command lines."""

from ivshmem_server.memory import MemoryUnavailableError, SharedMemory
from ivshmem_server.server import Client, IvshmemServer
from ivshmem_server.status import status_document

__all__ = [
    "Client",
    "IvshmemServer",
    "MemoryUnavailableError",
    "SharedMemory",
    "status_document",
]
