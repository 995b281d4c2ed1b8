"""Gets what tests and demo need from Debian. Standard library only.

Programs that are missing are installed with apt-get. The guest's kernel and busybox are never
installed: they are downloaded and unpacked below the cache directory, .cache beside this project's
pyproject.toml or what QEMU_COMPANION_CACHE names. With QEMU_COMPANION_QEMU=10, so are QEMU 10 and
Linux 6.12, from Debian 12's backports. What User Mode Linux is built with and from is had when it is
built only: tests/rig/uml_kernel.py.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.apt import KEYRING, Apt, SetupError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Selects QEMU and the guest's kernel: unset or empty for Debian's own, "10" for those of backports.
VARIANT_VARIABLE = "QEMU_COMPANION_QEMU"
CACHE_VARIABLE = "QEMU_COMPANION_CACHE"

_BACKPORTS = "bookworm-backports"
_KERNEL = r"linux-image-\d\S*"
#: QEMU 10 without its display and disk tools, which would bring the desktop's libraries along.
_QEMU = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
_NOT_QEMU = ("qemu-system-gui-", "qemu-utils-", "qemu-block-extra-")
_QEMU_PROGRAM = "qemu-system-x86_64"
_QEMU_MODULES = Path("/usr/lib/x86_64-linux-gnu/qemu")


def _has_program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _has_libc_development_files() -> bool:
    return Path("/usr/include/linux/vfio.h").exists() and any(Path("/usr").glob("lib*/**/libc.a"))


def _has_venv() -> bool:
    return importlib.util.find_spec("ensurepip") is not None


#: Debian packages that must be installed, and how to tell that they are not needed.
INSTALLED: dict[str, Callable[[], bool]] = {
    "qemu-system-x86": _has_program(_QEMU_PROGRAM),
    "gcc": _has_program("gcc"),
    "libc6-dev": _has_libc_development_files,
    "python3-venv": _has_venv,
    "make": _has_program("make"),
    "xz-utils": _has_program("xz"),
}
#: Those that tests try our reading of debug information on besides.
TEST_TOOLS: dict[str, Callable[[], bool]] = {
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


def cache() -> Path:
    """Return the cache directory, an absolute path; it may not exist yet."""
    default = Path(__file__).parents[2] / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or default).absolute()


def variant() -> str:
    """Return what VARIANT_VARIABLE selects: "" or "10". Raises SetupError for anything else."""
    wanted = os.environ.get(VARIANT_VARIABLE, "")
    if wanted not in {"", "10"}:
        raise SetupError(f"{VARIANT_VARIABLE}={wanted}: known are 10, or nothing for Debian's own QEMU")
    return wanted


def guest_root() -> Path:
    """Return the directory that holds the unpacked kernel and busybox; fetch them first if need be.

    Raises SetupError.
    """
    return fetched("backports", _fetch_backports) if variant() else fetched("stable", _fetch_stable)


def release(root: Path) -> str:
    """Return the release of the kernel in `root`, that of `guest_root()`."""
    (modules,) = (root / "lib/modules").iterdir()
    return modules.name


def qemu() -> list[str]:
    """Return the head of a command line that runs the selected QEMU. Raises SetupError if there is none."""
    if variant():
        return backports_qemu()
    if shutil.which(_QEMU_PROGRAM) is None:
        raise SetupError(f"no {_QEMU_PROGRAM} here: run `make setup`, or install Debian's qemu-system-x86")
    return [_QEMU_PROGRAM]


def backports_qemu() -> list[str]:
    """Return the head of a command line that runs backports' QEMU 10; fetch it first if need be.

    Raises SetupError.
    """
    root = fetched("backports", _fetch_backports)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return [
        *_hide_installed_modules(libraries / "qemu"),
        *("env", f"LD_LIBRARY_PATH={libraries}", f"QEMU_MODULE_DIR={libraries / 'qemu'}"),
        str(root / "usr/bin" / _QEMU_PROGRAM),
        *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
    ]


def _hide_installed_modules(modules: Path) -> list[str]:
    """Return what runs a program with `modules` in place of the installed QEMU's.

    A QEMU aborts when it meets another one's module, such as the display's. Where this process may
    have no mount namespace of its own, as in many containers, nothing is hidden: there is seldom a
    display either.
    """
    namespace = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "--"]
    allowed = subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode == 0
    if not allowed or not _QEMU_MODULES.exists():
        return []
    enter = 'mount --bind "$0" "$1" && shift && exec "$@"'
    return [*namespace, "sh", "-c", enter, str(modules), str(_QEMU_MODULES)]


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return the cache's directory `name`, made by `fetch`: whole, or not at all.

    `fetch` is given a new directory, in one that it may put other things into too. Raises SetupError.
    """
    root = cache() / name
    if root.exists():
        return root
    require_debian()
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{name}-") as scratch:
        unpacked = Path(scratch, "root")
        unpacked.mkdir()
        fetch(unpacked)
        try:
            unpacked.rename(root)
        except OSError:
            if not root.exists():  # else another process was quicker
                raise
    return root


def debian(scratch: Path) -> Apt:
    """Return a view, below `scratch`, of the packages that the selected variant's are from.

    Raises SetupError.
    """
    return _backports(scratch) if variant() else stable(scratch)


def stable(scratch: Path) -> Apt:
    """Return a view, below `scratch`, of the packages of this machine's release. Raises SetupError."""
    apt = Apt(scratch / "apt")
    apt.update()
    return apt


def _backports(scratch: Path) -> Apt:
    apt = Apt(scratch / "apt-backports", sources=_backports_sources(scratch), release=_BACKPORTS)
    apt.update()
    return apt


def _fetch_stable(root: Path) -> None:
    say("fetching Debian's package lists")
    apt = stable(root.parent)
    (kernel,) = apt.dependencies("linux-image-amd64", _KERNEL)
    say(f"downloading {kernel} and busybox-static for the guest (nothing of it is installed)")
    apt.unpack([kernel, "busybox-static"], root)


def _fetch_backports(root: Path) -> None:
    say(f"fetching the package lists of {_BACKPORTS} (apt's own sources stay as they are)")
    apt = _backports(root.parent)
    (kernel,) = apt.dependencies("linux-image-amd64", _KERNEL)
    qemu = apt.closure([*_QEMU, *_NOT_QEMU])
    say(f"downloading {kernel} and {qemu[0]} (nothing of it is installed)")
    # zstd is what that kernel is packed with.
    apt.unpack([kernel, "busybox-static", "zstd", *qemu], root)


def fetch_kernel_source(root: Path) -> Path:
    """Unpack Debian's package of Linux's source below `root`, an empty directory; return its tar.xz file.

    It is that of backports. The tools to build it are installed first if need be. Raises SetupError.
    """
    require_debian()
    install_missing(_KERNEL_TOOLS)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="source-") as scratch:
        say(f"downloading {_KERNEL_SOURCE} from {_BACKPORTS} (apt's own sources stay as they are)")
        _backports(Path(scratch)).unpack([_KERNEL_SOURCE], root)
    return root / "usr/src" / f"{_KERNEL_SOURCE}.tar.xz"


def _backports_sources(scratch: Path) -> list[str]:
    """Return sources for Debian 12 and its backports, from the mirror that this machine already uses."""
    machine = Apt(scratch / "apt-machine")
    machine.update()
    targets = [t for t in machine.targets() if t.origin == "Debian" and t.component == "main"]
    mirrors = [t.uri for t in targets if t.release == _BACKPORTS.removesuffix("-backports")]
    if not mirrors:
        raise SetupError("backports are those of Debian 12 (bookworm), which apt's sources do not name")
    options = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    releases = [(t.uri, t.release) for t in targets] + [(mirrors[0], _BACKPORTS)]
    return [f"deb {options}{uri} {release} main" for uri, release in dict.fromkeys(releases)]


def require_debian() -> None:
    """Raise SetupError unless this is an x86-64 machine with apt-get."""
    wanted = " ".join(INSTALLED)
    if shutil.which("apt-get") is None:
        raise SetupError(
            f"this system has no apt-get; wanted are the Debian packages {wanted} to be installed, "
            "and for the guest linux-image-amd64, linux-source, busybox-static, fio and others"
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
