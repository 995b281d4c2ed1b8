"""Warnings that a guest can cause at any rate: each is logged once, and so many at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


class Once:
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
