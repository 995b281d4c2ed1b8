"""Whether a front-end shares its memory, or keeps a copy (share=off in QEMU)."""

from __future__ import annotations

import os
from pathlib import Path


def is_private(file: tuple[int, int], pid: int) -> bool:
    """Tell whether a process has mapped a file, by its device and inode, only privately.

    What it writes there no other process sees. False also where proc(5) does not tell us.
    """
    device, inode = f"{os.major(file[0]):02x}:{os.minor(file[0]):02x}", str(file[1])
    try:
        rows = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines()]
    except OSError:
        return False
    permissions = [row[1] for row in rows if row[3:5] == [device.encode(), inode.encode()]]
    return bool(permissions) and all(each.endswith(b"p") for each in permissions)
