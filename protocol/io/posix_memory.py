"""Where Linux keeps POSIX shared memory objects."""

from __future__ import annotations

from pathlib import Path

SHM_DIRECTORY = Path("/dev/shm")
"""The directory of POSIX shared memory objects, a file each (shm_overview(7))."""
