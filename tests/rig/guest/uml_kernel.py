"""User Mode Linux, built from Debian's source of Linux.

It takes a minute or two, and is kept below the cache directory until something of ours that it is
built from changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rig.debian import cache, packages
from tests.rig.debian.apt import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONFIG = Path(__file__).parent / "uml-src/config"
_KERNEL = "linux"
_TOP = "linux-source-6.12"
#: What no build for this architecture reads; Kconfig files are read for all drivers.
_NOT_UNPACKED = (
    *(f"{_TOP}/{part}" for part in ("Documentation", "rust", "tools/perf", "tools/testing")),
    *(f"{_TOP}/arch/[!ux]*.{kind}" for kind in ("[chS]", "dts", "dtsi")),
    *(f"{_TOP}/drivers/{part}/*.[ch]" for part in ("gpu", "net/*", "media", "staging", "infiniband")),
    f"{_TOP}/sound/*.[ch]",
)
_SHOWN_LINES = 20


def built() -> Path | None:
    """Return the kernel, if it was built from what is here now."""
    return next(cache.directory().glob(f"uml-*-{_fingerprint()}/{_KERNEL}"), None)


def build() -> Path:
    """Return the kernel; build it first if need be, which takes its time. Raises SetupError."""
    cache.directory().mkdir(parents=True, exist_ok=True)
    with _alone():
        kernel = built() or _build(_fingerprint())
        for old in set(cache.directory().glob(f"uml-*/{_KERNEL}")) - {kernel}:
            old.unlink()
            old.parent.rmdir()
    return kernel


def _fingerprint() -> str:
    """Return what changes with everything of ours that it is built from."""
    files = (Path(__file__), _CONFIG)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process builds; keep others waiting for the length of the block."""
    with cache.directory().joinpath("uml.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(fingerprint: str) -> Path:
    with tempfile.TemporaryDirectory(dir=cache.directory(), prefix="building-uml-") as scratch:
        fetched, source, done = (Path(scratch, name) for name in ("fetched", "source", "done"))
        for directory in (fetched, source, done):
            directory.mkdir()
        archive = packages.fetch_kernel_source(fetched)
        packages.say("building User Mode Linux from it (one to three minutes)")
        _unpack(archive, source)
        _patch(source)
        _configure(source)
        _make(source, f"-j{len(os.sched_getaffinity(0))}", "linux")
        (source / "linux").rename(done / _KERNEL)
        directory = cache.directory() / f"uml-{_release(source)}-{fingerprint}"
        done.rename(directory)
    return directory / _KERNEL


def _unpack(archive: Path, source: Path) -> None:
    excludes = [f"--exclude={pattern}" for pattern in _NOT_UNPACKED]
    tar = ["tar", "-x", "-C", str(source), "--strip-components=1", "--anchored", *excludes]
    _run(["sh", "-c", f'xz -T0 -dc "$0" | {shlex.join(tar)}', str(archive)])
    for name in ("Kconfig", "Makefile"):
        (source / "Documentation").mkdir(exist_ok=True)
        (source / "Documentation" / name).touch()


def _patch(source: Path) -> None:
    """Change a word in two files. Raises SetupError where they are others than those.

    It is to save the registers of x87 and SSE only. It saves all the others too, in a buffer too small
    for those of a CPU with AMX: Linux 6.13 was the first with one that is not. Programs must keep to SSE
    therefore: tests/rig/guest/uml.py tells libc so.

    It is to have interrupt numbers for GPIO lines: with CONFIG_UML_PCI_OVER_VIRTIO it has, which is more
    to build and to boot.
    """
    for name, before, after in (
        ("arch/x86/um/os-Linux/registers.c", r"have_xstate_support = 1;", "have_xstate_support = 0;"),
        ("arch/um/include/asm/irq.h", r"(NR_IRQS\s+)UM_LAST_SIGNAL_IRQ\n", r"\1(UM_LAST_SIGNAL_IRQ + 64)\n"),
    ):
        text, count = re.subn(before, after, (source / name).read_text())
        if count != 1:
            raise SetupError(f"building User Mode Linux: {name} is not the file that {__name__} changes")
        (source / name).write_text(text)


def _configure(source: Path) -> None:
    """Choose what _CONFIG says. Raises SetupError where Linux leaves out something that is asked for."""
    _make(source, f"KCONFIG_ALLCONFIG={_CONFIG}", "allnoconfig")
    chosen = (source / ".config").read_text().splitlines()
    asked = [line for line in _CONFIG.read_text().splitlines() if line.startswith("CONFIG_")]
    refused = [line for line in asked if line.endswith("=y") and line not in chosen]
    if refused:
        raise SetupError(f"building User Mode Linux: its configuration lacks {', '.join(refused)}")


def _release(source: Path) -> str:
    return (source / "include/config/kernel.release").read_text().strip()


def _make(source: Path, *arguments: str) -> None:
    _run(["make", "-s", "-C", str(source), "ARCH=um", *arguments])


def _run(argv: Sequence[str]) -> None:
    """Run a step of the build. Raises SetupError: its last lines of output.

    It ends when this process does: on SIGTERM, make ends what it has started.
    """
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}  # of a make that may have started us
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "LC_ALL": "C.UTF-8"},
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
        if status:
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()[-_SHOWN_LINES:]
            raise SetupError("\n".join([f"building User Mode Linux: {argv[0]} failed", *lines]))
