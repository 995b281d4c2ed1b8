"""Linux's drivers of i2c and gpio over virtio, which Debian's kernels leave out, for the guest's kernel.

They are built from Debian's source of the same version, against its headers, and nothing is installed.
It takes fifteen seconds and 150 megabytes of downloads, once. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from pathlib import Path

from tests.rig.debian import cache, packages, platforms
from tests.rig.debian.apt import SetupError, run

_SOURCES = ("drivers/i2c/busses/i2c-virtio.c", "drivers/gpio/gpio-virtio.c")
#: What Debian's compiler of the same release has, and an older one may not: Linux has something else then.
_NEWER = ("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",)


def built(release: str) -> Path:
    """Return the directory of the drivers for the selected variant's kernel; build them first if need be.

    `release` is that of the kernel in packages.guest_root(). Raises SetupError.
    """
    directory = packages.fetched(f"{_prefix(release)}{fingerprint()}", lambda root: _build(release, root))
    # What another process is building has a longer name.
    for old in set(cache.directory().glob(_prefix(release) + "?" * len(fingerprint()))) - {directory}:
        shutil.rmtree(old, ignore_errors=True)
    return directory


def fingerprint() -> str:
    """Return what changes with how they are built."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def _prefix(release: str) -> str:
    return f"drivers-{release}-"


def _build(release: str, done: Path) -> None:
    """Build the drivers, and put them into `done`, an empty directory with space beside it."""
    scratch = done.with_name("sources")
    scratch.mkdir()
    source = _source_package(release)
    packages.say(f"building drivers that Linux {release} lacks, from {source} (nothing of it is installed)")
    headers = f"linux-headers-{release}"
    with platforms.archive(platforms.selected()) as apt:
        try:
            common, kbuild = apt.dependencies(headers, r"linux-headers-\S+", r"linux-kbuild-[^ ,]+")
        except SetupError as error:
            raise SetupError(
                f"{error}; if Debian has a newer kernel by now, remove {cache.directory()} and fetch it"
            ) from error
        # What the headers need besides is a compiler, which is here.
        packages.unpack_runnable(apt, [headers, common, source, *apt.closure([kbuild])], scratch)
    tools = next((scratch / "usr/lib").glob("linux-kbuild-*"))
    packages.make_runnable(scratch, (path for path in tools.rglob("*") if path.is_file()))
    for built in _compiled(scratch, scratch / "usr/src" / headers, source):
        built.rename(done / built.name)


def _source_package(release: str) -> str:
    version = re.match(r"\d+\.\d+", release)
    if version is None:
        raise SetupError(f"building drivers for Linux {release}: this is no release of Debian's")
    return f"linux-source-{version[0]}"


def _compiled(root: Path, headers: Path, source: str) -> list[Path]:
    """Compile the drivers of the package `source` against `headers`, all unpacked below `root`."""
    build = root / "build"
    build.mkdir()
    wanted = [f"{source}/{path}" for path in _SOURCES]
    tar = ["tar", "-x", "-C", str(build), "--transform", "s,.*/,,", "--occurrence=1", *wanted]
    # tar ends when it has them, which is no mistake of xz's.
    unpack = f"xz -T0 -dc {shlex.quote(str(root / 'usr/src' / source))}.tar.xz | {shlex.join(tar)}"
    run(["sh", "-c", unpack], purpose=f"unpacking {source}")
    objects = [Path(path).with_suffix(".o").name for path in _SOURCES]
    (build / "Makefile").write_text(f"obj-m := {' '.join(objects)}\n")
    # It names places where packages are installed. With a vmlinux, pahole is wanted besides.
    makefile = headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{root}/usr/src/"))
    (headers / "vmlinux").unlink(missing_ok=True)
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}  # of a make that may have started us
    clean = ["env", *(f"--unset={name}" for name in sorted(ours & os.environ.keys()))]
    make = ["make", "-s", "-C", str(headers), f"M={build}", "CC=gcc", *_NEWER, "modules"]
    run([*clean, *make], purpose=f"building {', '.join(objects)} (gcc is needed)")
    drivers = [build / name.replace(".o", ".ko") for name in objects]
    run(["strip", "-g", *map(str, drivers)], purpose="building drivers")
    return drivers
