"""Programs that a test may have in its guest, in sets: which there are, and where they come from.

They are Debian's own, unpacked below the cache directory and not installed. Standard library only.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.rig.debian import cache, packages, platforms

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ToolSet:
    """Programs of one Debian package.

    `libraries` are patterns of the packages that it depends on and whose libraries a guest needs: for
    others there will be stand-ins (tool_archive.py). libc is always there. `loaded` are the files
    of libraries that a program asks for when it runs only.
    """

    package: str
    programs: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()


TOOLS = {
    "fio": ToolSet("fio", ("fio",), (r"libaio\w+", r"libnuma\w+", r"zlib\w+")),
    "i2c": ToolSet("i2c-tools", ("i2cdetect", "i2cdump", "i2cget", "i2cset", "i2ctransfer"), (r"libi2c\w+",)),
    "gpio": ToolSet(
        "gpiod",
        ("gpiodetect", "gpioget", "gpioinfo", "gpiomon", "gpioset"),
        (r"libgpiod\w+",),
    ),
    "input": ToolSet("evtest", ("evtest",)),
    "net": ToolSet("iperf3", ("iperf3",), (r"libiperf\w+",), loaded=("libgcc_s.so.1",)),
}
"""The sets by the names that guest.boot() and uml.boot() take."""


def name() -> str:
    """Return the name of the directory that holds all sets; it changes with them, and with the platform."""
    table = repr(sorted(TOOLS.items()))
    return f"{_prefix()}{hashlib.sha256(table.encode()).hexdigest()[:12]}"


def _prefix() -> str:
    return f"{platforms.selected().name}-tools-"


def root() -> Path:
    """Return the directory that holds all sets and libraries, unpacked; fetch them first if need be.

    They are those of the selected platform. Raises SetupError.
    """
    directory = packages.fetched(name(), _fetch)
    # What another process is fetching has a longer name.
    for old in set(cache.directory().glob(_prefix() + "?" * (len(name()) - len(_prefix())))) - {directory}:
        shutil.rmtree(old, ignore_errors=True)
    return directory


def _fetch(root: Path) -> None:
    packages.say(f"downloading {', '.join(TOOLS)} tools for the guest (nothing of them is installed)")
    with platforms.archive(platforms.selected()) as apt:
        wanted = ["libc6", "libgcc-s1"]
        for tools in TOOLS.values():
            wanted += [tools.package, *apt.dependencies(tools.package, *tools.libraries)]
        apt.unpack(wanted, root)
