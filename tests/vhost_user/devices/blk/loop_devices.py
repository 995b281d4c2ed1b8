"""Loop devices: block devices whose medium is a file."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def loop_device(image: Path, *, sector_size: int = 512) -> Iterator[str]:
    """Make the file a block device for the length of the block; skip the test where nobody may."""
    if os.geteuid():
        pytest.skip("only root can set up loop devices")
    done = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", str(sector_size), str(image)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)
