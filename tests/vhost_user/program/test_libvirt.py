"""`vhost-user describe`, and the files that are installed."""

from __future__ import annotations

import json
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import vhost_user
from tests.vhost_user.program.cli_program import SECONDS, refusal, run
from vhost_user.devices import DEVICES
from vhost_user.program.installed import find
from vhost_user.program.libvirt import described_devices
from vhost_user.program.run import capabilities


@pytest.mark.parametrize("name", described_devices())
def test_description_for_management_software(name: str) -> None:
    """What is installed in share/qemu/vhost-user says what the device itself says."""
    path = Path(vhost_user.__file__).parent / "share" / f"50-qemu-companion-{name}.json"
    program = find(name)
    assert json.loads(path.read_text()) == {
        "description": program.summary,
        "type": capabilities(program)["type"],
        "binary": f"/usr/bin/vhost-user-{name}",
    }


def test_every_device_has_its_program_and_its_description_installed() -> None:
    root = Path(vhost_user.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["data-files"]["share/qemu/vhost-user"]
    described = {path.name for pattern in patterns for path in root.glob(pattern)}
    assert described == {f"50-qemu-companion-{name}.json" for name in described_devices()}
    programs = {point.name: point for point in entry_points(group="console_scripts")}
    for name in DEVICES:
        assert programs[f"vhost-user-{name}"].load().args == (name,)


@pytest.mark.extended
def test_describe_names_the_programs_where_they_are(directory: Path) -> None:
    """The installed files name /usr/bin, where a distribution puts the programs, and pip does not."""
    where = directory / "a" / "vhost-user"
    result = run("describe", str(where))
    assert (result.returncode, result.stderr) == (0, "")
    assert [Path(line) for line in result.stdout.splitlines()] == [
        where / f"50-qemu-companion-{name}.json" for name in described_devices()
    ]
    for name in described_devices():
        content = json.loads((where / f"50-qemu-companion-{name}.json").read_text())
        assert set(content) == {"description", "type", "binary"}
        told = subprocess.run(
            [content["binary"], "--print-capabilities"], capture_output=True, timeout=SECONDS, check=True
        )
        assert json.loads(told.stdout)["type"] == content["type"]


def test_describe_where_nothing_can_be_written() -> None:
    line = refusal("describe", "/proc/none")
    assert line.startswith("vhost-user: cannot write /proc/none/50-qemu-companion-blk.json: ")
    assert line.endswith("; give another directory")


def test_types_that_libvirt_does_not_know_are_not_described() -> None:
    assert "i2c" not in described_devices()
    assert {"blk", "rng"} <= set(described_devices())
