"""DirtyLogging: the front-end's dirty log, and the eventfd for changes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.io import EventFd
    from vhost_user.memory.dirty_log import DirtyLog

_log = logging.getLogger("vhost_user")


class DirtyLogging:
    """The log of SET_LOG_BASE, which memory uses while LOG_ALL is on, and the eventfd of SET_LOG_FD.

    The log unmaps its file when nothing refers to it any more; the eventfd is closed by `close()`.
    """

    def __init__(self) -> None:
        self.log: DirtyLog | None = None
        self._event: EventFd | None = None

    def set_event(self, event: EventFd) -> None:
        """Signal `event` from now on, which this object closes."""
        self._close_event()
        self._event = event

    def signal(self) -> None:
        """Tell that the log has changed, if the front-end wants to know."""
        if self._event is None:
            return
        try:
            self._event.signal()
        except OSError as error:
            _log.error("the descriptor of SET_LOG_FD is not an eventfd: %s", error.strerror)
            self._close_event()

    def close(self) -> None:
        """Close the eventfd, and let go of the log."""
        self._close_event()
        self.log = None

    def _close_event(self) -> None:
        if self._event is not None:
            self._event.close()
            self._event = None
