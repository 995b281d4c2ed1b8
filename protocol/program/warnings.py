"""Warnings that a guest can cause at any rate: each logged once, or so many a minute."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable


class OnceLogger:
    """Logs each warning once. A guest can think of any number: the ones after `most` are not logged."""

    def __init__(self, log: logging.Logger, most: int = 20) -> None:
        self._log = log
        self._most = most
        self._told: set[str] = set()

    def warning(self, text: str) -> None:
        """Log `text`, unless it was."""
        if text not in self._told and len(self._told) < self._most:
            self._told.add(text)
            self._log.warning("%s", text)


class FailureLogger:
    """Logs why something fails that is tried again and again: once, until it has worked."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged: str | None = None

    def failed(self, text: str) -> None:
        """Log `text`, unless the attempt before has failed with the same."""
        if text != self._logged:
            self._logged = text
            self._log.error("%s", text)

    def worked(self) -> None:
        """Log the next failure again."""
        self._logged = None


class LimitedLogger:
    """Logs at most `most` warnings in each `seconds`, and how many were left out. For several threads."""

    def __init__(
        self,
        log: logging.Logger,
        what: str,
        *,
        most: int = 10,
        seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` is what they are about, in the plural."""
        self._log = log
        self._clock = clock
        self._what = what
        self._most = most
        self._seconds = seconds
        self._mutex = threading.Lock()
        self._end = 0.0
        self._left = 0
        self._omitted = 0

    def warning(self, text: str) -> None:
        """Log `text`, or count it."""
        with self._mutex:
            now = self._clock()
            if now >= self._end:
                self._tell()
                self._end, self._left = now + self._seconds, self._most
            if self._left:
                self._left -= 1
                self._log.warning("%s", text)
            else:
                self._omitted += 1

    def settle(self, *, now: bool = False) -> None:
        """Log how many were left out, once their time is over, or `now`. To be called every now and then."""
        with self._mutex:
            if now or self._clock() >= self._end:
                self._tell()

    def _tell(self) -> None:
        if self._omitted:
            self._log.warning(
                "%d more %s were left out here, where %d in %g s are logged",
                *(self._omitted, self._what, self._most, self._seconds),
            )
            self._omitted = 0
