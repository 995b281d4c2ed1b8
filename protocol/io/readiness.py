"""Telling the service manager that we are ready, alive or stopping: sd_notify(3), without a library."""

from __future__ import annotations

import os
import socket

import trio


def notify(state: str) -> bool:
    """Send `state` ("READY=1", "STOPPING=1", "STATUS=...") to the service manager.

    Returns False where there is none (NOTIFY_SOCKET unset) or it has gone: a manager that went away
    is no reason to stop serving. Never blocks.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return False
    return True


async def watchdog() -> None:
    """Say "WATCHDOG=1" twice in each interval that the service manager set; return at once if it set none.

    Runs in the loop that serves, so that a loop that hangs is noticed (sd_watchdog_enabled(3)).
    """
    interval = _watchdog_seconds()
    while interval:
        notify("WATCHDOG=1")
        await trio.sleep(interval / 2)
    await trio.lowlevel.checkpoint()


def _watchdog_seconds() -> float | None:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
