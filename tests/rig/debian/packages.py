"""Gets what tests and demo need from Debian. Standard library only.

Compilers and the like that are missing are installed with apt-get. QEMU, the guest's kernel and all
that runs in the guest are never installed: they are those of a platform (tests/rig/debian/platforms.py),
downloaded and unpacked with their libraries below the cache directory, .cache beside this project's
pyproject.toml or what QEMU_COMPANION_CACHE names. `unpacked()` does so with any other packages, and
`program()` finds a program in there that runs with those libraries. What User Mode Linux is built with
and from is had when it is built only: tests/rig/guest/uml_kernel.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.debian import cache, platforms
from tests.rig.debian.apt import SetupError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.rig.debian.apt import Apt
    from tests.rig.debian.platforms import Platform

_KERNEL = r"linux-image-\d\S*"
#: Packages that a kernel is divided into since 7.
_KERNEL_PARTS = r"linux-(?:binary|modules)-\d\S*"
#: QEMU and its tools without what would bring the desktop's libraries along, and what the guest is made of.
_GUEST = ("qemu-system-x86", "seabios", "qemu-utils", "busybox-static", "zstd")
_NOT_GUEST = ("qemu-system-gui-", "qemu-block-extra-")
_QEMU = "qemu-system-x86_64"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PROGRAMS = "programs"
#: Where packages have their programs, the last one for those that other programs run.
_PROGRAM_PLACES = ("usr/bin", "usr/sbin", "usr/libexec")
_LOADER = f"{_PROGRAMS}/ld.so"


def _has_program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _has_libc_development_files() -> bool:
    return Path("/usr/include/linux/vfio.h").exists() and any(Path("/usr").glob("lib*/**/libc.a"))


def _has_venv() -> bool:
    return importlib.util.find_spec("ensurepip") is not None


#: Debian packages that must be installed, and how to tell that they are not needed.
INSTALLED: dict[str, Callable[[], bool]] = {
    "gcc": _has_program("gcc"),
    "libc6-dev": _has_libc_development_files,
    "python3-venv": _has_venv,
    "make": _has_program("make"),
    "xz-utils": _has_program("xz"),
}
#: Those that tests try our reading of debug information on besides, and make a file system with.
TEST_TOOLS: dict[str, Callable[[], bool]] = {
    "btrfs-progs": _has_program("mkfs.btrfs"),
    "dwz": _has_program("dwz"),
    "g++": _has_program("g++"),
    "rustc": _has_program("rustc"),
}
#: Those that a kernel is built with besides.
_KERNEL_TOOLS: dict[str, Callable[[], bool]] = {
    "flex": _has_program("flex"),
    "bison": _has_program("bison"),
    "bc": _has_program("bc"),
}
_KERNEL_SOURCE = "linux-source-6.12"
#: Where that is from.
_KERNEL_SOURCE_PLATFORM = platforms.PLATFORMS["debian13"]


def guest_root() -> Path:
    """Return the directory that holds the selected platform's QEMU, its kernel for the guest, and busybox.

    They are fetched first if need be. Raises SetupError.
    """
    return fetched(guest_name(), lambda root: _fetch_guest(platforms.selected(), root))


def guest_name() -> str:
    """Return the name of that directory; it changes with the platform and with what is fetched."""
    return f"{platforms.selected().name}-guest-{_digest([*_GUEST, *_NOT_GUEST])}"


def release(root: Path) -> str:
    """Return the release of the kernel in `root`, that of `guest_root()`."""
    (modules,) = (root / "lib/modules").iterdir()
    return modules.name


def qemu() -> list[str]:
    """Return the head of a command line that runs the selected platform's QEMU; fetch it first if need be.

    Raises SetupError.
    """
    return [str(program(guest_root(), _QEMU))]


def guest_programs() -> Path | None:
    """Return the directory of the selected platform's QEMU and its tools; None where they are not fetched.

    Raises SetupError.
    """
    programs = cache.directory() / guest_name() / _PROGRAMS
    return programs if programs.exists() else None


def unpacked(platform: Platform, packages: Sequence[str]) -> Path:
    """Return the directory that holds `packages` of a platform and all that they need; fetch them if need be.

    They are unpacked and not configured: no user was added, no service started, no alternative chosen.
    A name that ends in - is a package to do without. Raises SetupError.
    """
    name = f"{platform.name}-{packages[0]}-{_digest(packages)}"

    def fetch(root: Path) -> None:
        say(f"downloading {packages[0]} of {platform.name} (nothing of it is installed)")
        with platforms.archive(platform) as apt:
            unpack_runnable(apt, apt.closure(packages), root)

    return fetched(name, fetch)


def program(root: Path, name: str) -> Path:
    """Return the path that runs program `name` of `root`, an `unpacked()` directory, with its own libraries.

    It can be executed by any user, and from any directory; the process that is started becomes the
    program. The directory that it is in is one for PATH: there are all of them. Raises SetupError.
    """
    path = root / _PROGRAMS / name
    if not path.exists():
        raise SetupError(f"no program {name} in {root}: remove that directory, and run `make setup`")
    return path


def unpack_runnable(apt: Apt, packages: Sequence[str], root: Path) -> None:
    """Unpack `packages` below `root`, and make what `program()` is to find. Raises SetupError."""
    apt.unpack(packages, root)
    programs = root / _PROGRAMS
    programs.mkdir()
    shutil.copy2(root / "lib64/ld-linux-x86-64.so.2", root / _LOADER)
    # Beside what was executed, the loader, QEMU looks for this directory: with it, a build that was not
    # installed finds its modules and firmware.
    (programs / "qemu-bundle").symlink_to("..")
    for path in (path for place in _PROGRAM_PLACES for path in root.glob(f"{place}/*")):
        if path.is_file() and _wants_loader(path):
            _write_script(programs / path.name, "${0%/*}/..", path.relative_to(root))


def make_runnable(root: Path, programs: Iterable[Path]) -> None:
    """Have `programs`, of packages unpacked below `root`, run where they are: with the libraries of `root`.

    In each one's place there is a script then, which does not outlive a move of `root`.
    """
    for path in programs:
        if _wants_loader(path):
            moved = path.rename(path.with_name(f"{path.name}.unpacked"))
            _write_script(path, str(root), moved.relative_to(root))


def _write_script(script: Path, root: str, program: Path) -> None:
    loader = f'"$root/{_LOADER}" --library-path "$root/{_LIBRARIES}"'
    script.write_text(f'#!/bin/sh\nroot="{root}"\nexec {loader} --argv0 "$0" "$root/{program}" "$@"\n')
    script.chmod(0o755)


def _wants_loader(path: Path) -> bool:
    """Tell whether a file is a program with libraries."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF" and b"/lib64/ld-linux-x86-64.so.2\0" in file.read(4096)


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return the cache's directory `name`, which `fetch` gets from Debian if it is new: cache.made().

    Raises SetupError.
    """
    if not (cache.directory() / name).exists():
        require_debian()
    return cache.made(name, fetch)


def _fetch_guest(platform: Platform, root: Path) -> None:
    say(f"looking for QEMU and Linux of {platform.name} (apt's own sources stay as they are)")
    with platforms.archive(platform) as apt:
        (kernel,) = apt.dependencies("linux-image-amd64", _KERNEL)
        packages = apt.closure([*_GUEST, *_NOT_GUEST])
        say(f"downloading {kernel}, QEMU and busybox (nothing of it is installed)")
        unpack_runnable(apt, [*apt.parts(kernel, _KERNEL_PARTS), *packages], root)


def fetch_kernel_source(root: Path) -> Path:
    """Unpack Debian's package of Linux's source below `root`, an empty directory; return its tar.xz file.

    The tools to build it are installed first if need be. Raises SetupError.
    """
    require_debian()
    install_missing(_KERNEL_TOOLS)
    say(f"downloading {_KERNEL_SOURCE} of {_KERNEL_SOURCE_PLATFORM.name}")
    with platforms.archive(_KERNEL_SOURCE_PLATFORM) as apt:
        apt.unpack([_KERNEL_SOURCE], root)
    return root / "usr/src" / f"{_KERNEL_SOURCE}.tar.xz"


def require_debian() -> None:
    """Raise SetupError unless this is an x86-64 machine with apt-get."""
    wanted = " ".join(INSTALLED)
    if shutil.which("apt-get") is None:
        raise SetupError(
            f"this system has no apt-get; wanted are the Debian packages {wanted} to be installed, and "
            "for the guest qemu-system-x86, linux-image-amd64, linux-source, busybox-static, fio and others"
        )
    if platform.machine() != "x86_64":
        raise SetupError(f"the guest is an x86-64 Linux and this machine is {platform.machine()}")


def install_missing(wanted: Mapping[str, Callable[[], bool]] = INSTALLED) -> None:
    """Install the Debian packages that are missing; none if all is there. Raises SetupError."""
    missing = [package for package, present in wanted.items() if not present()]
    if not missing:
        say("every program that is needed is installed")
        return
    names = " ".join(missing)
    if os.geteuid() and shutil.which("sudo") is None:
        raise SetupError(f"missing Debian packages: {names}; as root, run: apt-get install {names}")
    say(f"installing {names} with apt-get (a minute or two)")
    root = [] if os.geteuid() == 0 else ["sudo"]
    install = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "install", "--no-install-recommends", "-y"]
    run([*root, "apt-get", "-qq", "update"], purpose="fetching Debian's package lists")
    run([*root, "env", "DEBIAN_FRONTEND=noninteractive", *install, *missing], purpose=f"installing {names}")


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"set-up: {text}", flush=True)
