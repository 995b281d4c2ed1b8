"""Wire protocols and layouts of QEMU's external devices, without I/O except in protocol.io."""

from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.fds import OwnedFd

__all__ = ["LocalProtocolError", "OwnedFd", "ProtocolError", "RemoteProtocolError"]

__version__ = "0.1.0"
