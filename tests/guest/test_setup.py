"""The set-up as a user runs it, on machines that lack something; apt-get is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.debian import packages
from tests.rig.guest import drivers, tools

PROJECT = Path(__file__).parents[2]
PROGRAMS = ("gcc", "make", "xz")
RELEASE = "6.12.0+deb0-amd64"


APT = """
for argument; do
    case $argument in
        Dir::State::lists=*) lists=${argument#*=} ;;
        --print-uris) echo "'http://mirror.example/debian/dists/stable/InRelease' InRelease 0" ;;
        update) printf 'Origin: Debian\\nLabel: Debian\\n' >$lists/InRelease ;;
    esac
done
"""
"""What apt-get does where the machine's sources name an archive of Debian's."""


class Machine:
    """A machine whose only programs are those in `programs`."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.cache = directory / "cache"
        self.drivers = self.cache / f"drivers-{RELEASE}-{drivers.fingerprint()}"
        self.guest = self.cache / packages.guest_name()
        self.fetched = (self.drivers, self.guest, self.cache / tools.name())
        for fetched in (*self.fetched, self.guest / "lib/modules" / RELEASE):  # before
            fetched.mkdir(parents=True, exist_ok=True)
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
    machine.drivers.rmdir()
    machine.install("apt-get", APT)
    machine.install("apt-cache", "echo 'E: No packages found' >&2; exit 100")
    done = machine.set_up()

    assert done.returncode == 1
    assert done.stderr == (
        f"set-up: looking for linux-headers-{RELEASE}: No packages found; "
        f"if Debian has a newer kernel by now, remove {machine.cache} and fetch it\n"
    )
    assert {path.name for path in machine.fetched if path.exists()} == {machine.guest.name, tools.name()}
    assert not list(machine.cache.glob("drivers-*"))


def test_an_unknown_platform_is_refused(machine: Machine) -> None:
    done = machine.set_up(QEMU_COMPANION_PLATFORM="debian7")

    assert done.returncode == 1
    assert done.stderr == (
        "set-up: QEMU_COMPANION_PLATFORM=debian7: known are "
        "debian13, debian12, debian13-backports, debian12-backports\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs without sudo")
def test_user_mode_linux_wants_tools_and_debians_archive(machine: Machine) -> None:
    for name in ("bison", "bc"):
        machine.install(name)
    machine.install("env", 'shift; exec "$@"')
    done = machine.set_up("tests.rig.guest.uml")

    assert done.returncode == 1
    assert any(call.endswith("install --no-install-recommends -y flex") for call in machine.calls())
    assert done.stderr == (
        "set-up: apt's sources name no archive of Debian's, which the guest's packages are from\n"
    )
    assert not list(machine.cache.glob("uml-*"))
