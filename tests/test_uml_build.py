"""How User Mode Linux is built and kept, with a smaller source tree than Linux's."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rig.debian import packages
from tests.rig.debian.apt import SetupError
from tests.rig.debian.cache import VARIABLE
from tests.rig.guest import uml_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[1]

MAKEFILE = """
allnoconfig:
	mkdir -p include/config && echo 6.12.1 >include/config/kernel.release
	grep -v '{omit}' $(KCONFIG_ALLCONFIG) >.config
linux:
	{build}
"""
REGISTERS = "arch/x86/um/os-Linux/registers.c"
NUMBERS = "arch/um/include/asm/irq.h"
SOURCES = {
    REGISTERS: "\thave_xstate_support = 1;\n",
    NUMBERS: "#define UM_LAST_SIGNAL_IRQ\t64\n#define NR_IRQS\t\tUM_LAST_SIGNAL_IRQ\n#endif\n",
}


@pytest.fixture(autouse=True)
def cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(VARIABLE, str(directory))
    return directory


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lets a source tree be fetched whose Makefile is the last one of this list; takes note of each time."""
    makefiles: list[str] = []
    times: list[None] = []

    def fetch(root: Path) -> Path:
        times.append(None)
        top = root / "linux-source-6.12"
        for name, text in SOURCES.items():
            (top / name).parent.mkdir(parents=True)
            (top / name).write_text(text)
        (top / "Makefile").write_text(makefiles[-1])
        archive = root / "source.tar.xz"
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(top, top.name)
        return archive

    monkeypatch.setattr(packages, "fetch_kernel_source", fetch)
    yield makefiles
    assert len(times) == len(makefiles)


def makefile(build: str, omit: str = "nothing") -> str:
    return MAKEFILE.replace("{build}", build).replace("{omit}", omit)


def test_it_is_built_once_with_the_changes(fetched: list[str], cache: Path) -> None:
    fetched.append(makefile(f"cat {REGISTERS} {NUMBERS} >linux"))
    assert uml_kernel.built() is None
    kernel = uml_kernel.build()
    assert kernel == uml_kernel.built() == uml_kernel.build()
    assert kernel.read_text() == (
        "\thave_xstate_support = 0;\n"
        "#define UM_LAST_SIGNAL_IRQ\t64\n#define NR_IRQS\t\t(UM_LAST_SIGNAL_IRQ + 64)\n#endif\n"
    )
    assert sorted(path.name for path in cache.iterdir()) == sorted([kernel.parent.name, "uml.lock"])


def test_another_configuration_replaces_it(
    fetched: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched.append(makefile("echo one >linux"))
    first = uml_kernel.build()
    config = directory / "config"
    config.write_text("CONFIG_64BIT=y\n")
    monkeypatch.setattr(uml_kernel, "_CONFIG", config)
    fetched.append(makefile("echo two >linux"))
    assert uml_kernel.build().read_text() == "two\n"
    assert not first.parent.exists()


def test_a_build_that_fails_ends_with_its_last_lines(fetched: list[str], cache: Path) -> None:
    fetched.append(makefile("@seq 100 && false"))
    with pytest.raises(SetupError) as failure:
        uml_kernel.build()
    lines = str(failure.value).splitlines()
    assert lines[0] == "building User Mode Linux: make failed"
    assert lines[-2] == "100"
    assert len(lines) == 21
    assert [path.name for path in cache.iterdir()] == ["uml.lock"]


def test_what_linux_leaves_out_is_named(fetched: list[str]) -> None:
    fetched.append(makefile("false", omit="SCSI_VIRTIO"))
    with pytest.raises(SetupError, match=r"its configuration lacks CONFIG_SCSI_VIRTIO=y$"):
        uml_kernel.build()


@pytest.mark.parametrize("ci", [True, False])
def test_tests_without_it_say_so(cache: Path, *, ci: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    if ci:
        environment["CI"] = "true"
    options = ("-q", "-p", "no:cacheprovider", f"--basetemp={cache}/pytest")
    argv = [sys.executable, "-m", "pytest", *options, "tests/uml/test_rng.py"]
    done = subprocess.run(
        argv, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == (1 if ci else 0)
    assert "User Mode Linux is not built here: `make uml` builds it" in done.stdout
    assert (" errors in " if ci else " skipped in ") in done.stdout
