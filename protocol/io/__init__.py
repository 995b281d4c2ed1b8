"""What the protocols need of Linux, for trio: sockets that pass fds, eventfds, listeners, readiness."""

from protocol.io import means, signals
from protocol.io.eventfd import EventFd
from protocol.io.hang_up import has_hung_up, until_hung_up
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
from protocol.io.readiness import notify, watchdog
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
    "has_hung_up",
    "inherited_listener",
    "listen",
    "means",
    "notify",
    "signals",
    "systemd_listener",
    "until_hung_up",
    "watchdog",
]
