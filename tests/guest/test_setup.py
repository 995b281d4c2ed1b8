"""The set-up as a user runs it, on machines that lack something; apt-get is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import drivers, tools

PROJECT = Path(__file__).parents[2]
PROGRAMS = ("qemu-system-x86_64", "gcc", "make", "xz")
RELEASE = "6.1.0-0-amd64"
FETCHED = (f"stable/lib/modules/{RELEASE}", f"drivers-{RELEASE}-{drivers.fingerprint()}", tools.name())


class Machine:
    """A machine whose only programs are those in `programs`."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.cache = directory / "cache"
        for fetched in FETCHED:  # before
            (self.cache / fetched).mkdir(parents=True)
        self.log = directory / "log"

    def install(self, name: str, script: str = "") -> None:
        """Put a program on the machine, which logs how it was called."""
        program = self.programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {self.log}\n{script}\n')
        program.chmod(0o755)

    def set_up(self, module: str = "tests.rig.setup", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the set-up there."""
        return subprocess.run(
            [sys.executable, "-m", module],
            cwd=PROJECT,
            env={"PATH": str(self.programs), "QEMU_COMPANION_CACHE": str(self.cache), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def calls(self) -> list[str]:
        """Return how the machine's programs were called."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Debian that has all that is needed."""
    machine = Machine(tmp_path)
    for name in (*PROGRAMS, "apt-get"):
        machine.install(name)
    return machine


def test_nothing_is_installed_where_all_is_there(machine: Machine) -> None:
    done = machine.set_up()

    assert done.returncode == 0, done.stderr
    assert not machine.calls()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs without sudo")
def test_what_is_missing_is_installed(machine: Machine) -> None:
    (machine.programs / "gcc").unlink()
    machine.install("env", 'shift; exec "$@"')
    done = machine.set_up()

    assert done.returncode == 0, done.stderr
    update, _, install = machine.calls()
    assert update == "apt-get -qq update"
    assert install.endswith("install --no-install-recommends -y gcc")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs without sudo")
def test_what_apt_complains_of_is_told_in_one_line(machine: Machine) -> None:
    (machine.programs / "gcc").unlink()
    machine.install("apt-get", "echo 'E: no space left' >&2; exit 100")
    done = machine.set_up()

    assert done.returncode == 1
    assert done.stderr == "set-up: fetching Debian's package lists: no space left\n"


def test_a_system_without_apt_is_told_what_is_wanted(machine: Machine) -> None:
    for name in (*PROGRAMS, "apt-get"):
        (machine.programs / name).unlink()
    done = machine.set_up()

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for package in ("qemu-system-x86", "gcc", "libc6-dev", "linux-image-amd64", "busybox-static", "fio"):
        assert package in line


def test_a_kernel_that_debian_has_no_more_headers_for_is_told(machine: Machine) -> None:
    (machine.cache / FETCHED[1]).rmdir()
    machine.install("apt-cache", "echo 'E: No packages found' >&2; exit 100")
    done = machine.set_up()

    assert done.returncode == 1
    assert done.stderr == (
        f"set-up: looking for linux-headers-{RELEASE}: No packages found; "
        f"if Debian has a newer kernel by now, remove {machine.cache} and fetch it\n"
    )
    assert {path.name for path in machine.cache.iterdir()} == {"stable", tools.name()}


def test_an_unknown_variant_is_refused(machine: Machine) -> None:
    done = machine.set_up(QEMU_COMPANION_QEMU="9")

    assert done.returncode == 1
    assert done.stderr == "set-up: QEMU_COMPANION_QEMU=9: known are 10, or nothing for Debian's own QEMU\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs without sudo")
def test_user_mode_linux_wants_tools_and_debian_12(machine: Machine) -> None:
    for name in ("bison", "bc"):
        machine.install(name)
    machine.install("env", 'shift; exec "$@"')
    done = machine.set_up("tests.rig.uml")

    assert done.returncode == 1
    assert any(call.endswith("install --no-install-recommends -y flex") for call in machine.calls())
    assert done.stderr == (
        "set-up: backports are those of Debian 12 (bookworm), which apt's sources do not name\n"
    )
    before = {path.partition("/")[0] for path in FETCHED}
    assert {path.name for path in machine.cache.iterdir()} == {*before, "uml.lock"}
