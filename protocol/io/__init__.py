"""What the protocols need of Linux, for trio: sockets that pass fds, eventfds, listeners."""

from protocol.io import exhaustion
from protocol.io.eventfd import EventFd
from protocol.io.hangup import has_hung_up, until_hung_up
from protocol.io.listener import (
    Listener,
    RemediedError,
    SocketAccessError,
    SocketInUseError,
    SocketOfAnotherError,
    inherited_listener,
    listen,
    systemd_listener,
)
from protocol.io.stream import AncillaryLostError, Credentials, FdStream, connect

__all__ = [
    "AncillaryLostError",
    "Credentials",
    "EventFd",
    "FdStream",
    "Listener",
    "RemediedError",
    "SocketAccessError",
    "SocketInUseError",
    "SocketOfAnotherError",
    "connect",
    "exhaustion",
    "has_hung_up",
    "inherited_listener",
    "listen",
    "systemd_listener",
    "until_hung_up",
]
