"""Numbers in texts."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return "1 vector", "2 vectors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
