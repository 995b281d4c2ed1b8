"""Programs without /proc, as with systemd's ProcSubset=pid and in some containers."""

from __future__ import annotations

import os

import pytest

SUBSET = "mount -t proc -o subset=pid proc /proc"
NONE = "umount -l /sys; umount -l /proc"


def launcher(hide: str) -> list[str]:
    """Return the command that hides /proc from the one behind it, which it executes; only root may."""
    return ["unshare", "--mount", "--", "sh", "-c", f'{hide} && exec "$@"', "sh"]


with_hidden_proc = pytest.mark.skipif(os.geteuid() != 0, reason="only root hides /proc from a program")
each_way = pytest.mark.parametrize("hide", [SUBSET, NONE], ids=["subset=pid", "no /proc, no /sys"])
