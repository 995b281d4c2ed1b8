"""Regions of a guest's memory that the tests share, and files for them."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.fds import OwnedFd
from vhost_user.memory.regions import Region

PAGE = 4096
A = Region(0x10_0000, 4 * PAGE, 0x7F00_0000_0000)
B = Region(0x10_4000, 2 * PAGE, 0x7E00_0000_0000)
"""Behind A for the guest, elsewhere for the front-end."""
C = Region(0x20_0000, PAGE, 0x7F00_0000_8000)


def file_of(size: int) -> OwnedFd:
    """Return a file of the guest's memory."""
    fd = OwnedFd(os.memfd_create("guest", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    return fd


def open_fds() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
