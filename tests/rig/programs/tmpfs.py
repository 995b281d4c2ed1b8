"""A small tmpfs that one program alone sees, and others who fill it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.rig.programs.process import Program

SIZE = 8 << 20

for_mounter = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs")


def launcher(directory: Path, filled: int = 0, sparse: str = "") -> list[str]:
    """Return the command that mounts one for the command behind it, with `filled` of its 8 MiB in use.

    A file `sparse` is in it that has 4 MiB, and none of them yet.
    """
    steps = [
        f"mount -t tmpfs -o size={SIZE} none {directory}",
        f"head -c {filled}M /dev/zero > {directory}/filled",
        *([f"truncate -s 4M {directory}/{sparse}"] if sparse else []),
        'exec "$@"',
    ]
    return ["unshare", "--mount", "--", "sh", "-c", " && ".join(steps), "sh"]


def fill_up(program: Program, directory: Path) -> None:
    """Take what is left of that of a program."""
    with pytest.raises(OSError, match="No space left"):
        Path(f"/proc/{program.pid}/root{directory}/rest").write_bytes(bytes(2 * SIZE))
