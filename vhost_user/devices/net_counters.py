"""Counters: what went through a network device in one direction."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Frames of one direction, and their bytes without the virtio header."""

    frames: int = 0
    bytes: int = 0
    dropped: int = 0
    """Frames that could not be taken or given."""
    filtered: int = 0
    """Frames to the guest that it did not want."""
