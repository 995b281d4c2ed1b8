"""Memory that can be had: the machine's, and the share that control groups leave.

All of it is only information: what is hidden (/proc, /sys) limits nothing here.
"""

from __future__ import annotations

import contextlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")

_NO_LIMIT = 1 << 60
"""Version 1 has a number for no limit, a little below this sign's end."""


class Limit(NamedTuple):
    """Bytes of memory that can be had, and what sets that limit, in words for the user."""

    size: int
    what: str


def most_memory() -> Limit | None:
    """Return what could be had if no other program used any; None where nothing tells."""
    return _least(_machine("memory and swap", "MemTotal", "SwapTotal"), _groups(used=False))


def free_memory() -> Limit | None:
    """Return what can be had now without taking it from anybody; None where nothing tells."""
    return _least(_machine("free memory and swap", "MemAvailable", "SwapFree"), _groups(used=True))


def _least(*limits: Iterator[Limit]) -> Limit | None:
    """Return the least limit; None where there is none, or the kernel's files are not as we know them."""
    with contextlib.suppress(ValueError):
        return min(chain(*limits), default=None)
    return None


def _machine(what: str, memory: str, swap: str) -> Iterator[Limit]:
    sizes = dict(line.split(":", 1) for line in _lines(PROC / "meminfo") if ":" in line)
    if memory in sizes:
        total = sum(int(sizes[name].split()[0]) << 10 for name in (memory, swap) if name in sizes)
        yield Limit(total, what)


class _Names(NamedTuple):
    """What the files of a control group are called, and its caches, as good as free, in its statistics."""

    limit: str
    used: str
    caches: str


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file")


def _groups(*, used: bool) -> Iterator[Limit]:
    """Yield the limits of our control group and those above, less what is `used`. Swap does not count."""
    for line in _lines(PROC / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            root, names = (CGROUPS / "memory", _VERSION_1) if controllers else (CGROUPS, _VERSION_2)
            yield from _limits(root, path.strip("/"), names, used=used)


def _limits(root: Path, path: str, names: _Names, *, used: bool) -> Iterator[Limit]:
    """Yield those of a path: in a container, what is at the root may be our own group."""
    ours = root / path
    for group in (ours, *ours.parents):
        limit = _number(group / names.limit)
        if limit is not None and limit < _NO_LIMIT:
            left = limit - _in_use(group, names) if used else limit
            yield Limit(max(0, left), f"the memory limit of the control group {group}")
        if group == root:
            return


def _in_use(group: Path, names: _Names) -> int:
    statistics = dict(line.split() for line in _lines(group / "memory.stat"))
    return (_number(group / names.used) or 0) - int(statistics.get(names.caches, 0))


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel's; none where it is not there, or not for us."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
