"""Readiness for the service manager (sd_notify(3)): ready, alive, stopping."""

from __future__ import annotations

import os
import socket

import trio


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "STOPPING=1", "STATUS=...") to the service manager.

    Returns False where there is none (NOTIFY_SOCKET unset), it has gone or does not listen: that is
    no reason to stop serving. Never blocks, never raises.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            return _send(sock, state)
    except OSError:  # at our limit of open files
        return False


async def watchdog() -> None:
    """Say "WATCHDOG=1" twice in each interval that the service manager set; return at once if it set none.

    Runs in the loop that serves, so that a loop that hangs is noticed (sd_watchdog_enabled(3)).
    """
    await trio.lowlevel.checkpoint()
    if interval := _watchdog_seconds():
        # One socket for all: a server at its limit of open files is alive all the same.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            while True:
                _send(sock, "WATCHDOG=1")
                await trio.sleep(interval / 2)


def _send(sock: socket.socket, state: str) -> bool:
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        sock.sendto(state.encode(), socket.MSG_DONTWAIT, address)
    except OSError:
        return False
    return True


def _watchdog_seconds() -> float | None:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
