"""The directory that all that is downloaded and built is kept in. Standard library only."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "QEMU_COMPANION_CACHE"
"""Names the directory; unset or empty for .cache beside this project's pyproject.toml."""


def directory() -> Path:
    """Return the cache directory, an absolute path; it may not exist yet."""
    default = Path(__file__).parents[3] / ".cache"
    return Path(os.environ.get(VARIABLE) or default).absolute()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep other processes from what is made in the cache as `name`, for the length of the block."""
    locks = directory() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with locks.joinpath(name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's directory `name`, made by `make` if it is new: whole, or not at all.

    `make` is given a new directory, in one that it may put other things into too, while other processes
    that want the same wait. What it raises is passed on.
    """
    path = directory() / name
    if path.exists():
        return path
    with locked(name):
        if path.exists():  # another process has made it meanwhile
            return path
        with tempfile.TemporaryDirectory(dir=directory(), prefix=f"{name}-") as scratch:
            new = Path(scratch, "root")
            new.mkdir()
            make(new)
            new.rename(path)
    return path
