"""Wire protocols and layouts of QEMU's external devices; I/O is in io and program."""

from protocol.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from protocol.fds import OwnedFd

__all__ = ["LocalProtocolError", "OwnedFd", "ProtocolError", "RemoteProtocolError"]

__version__ = "0.1.0"
