"""docs/testing-a-device.md is true: the test file that it is passes, as a user would run it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import PROJECT, blocks, read
from tests.rig.programs.backend import command, start_program
from tests.vhost_user.frontend.storage_daemon import SECTORS, content, fill_disk, storage_daemon

if TYPE_CHECKING:
    from pathlib import Path

GUIDE = read("testing-a-device.md")
SECONDS = 100


@pytest.fixture
def file(directory: Path) -> Path:
    """The guide's code, with its configuration of pytest beside it."""
    (directory / "pytest.ini").write_text(blocks(GUIDE, "ini")[0])
    path = directory / "test_guide.py"
    path.write_text("\n\n".join(blocks(GUIDE, "python")))
    return path


def test_the_guide_is_a_test_file_that_passes(file: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "examples")}
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", f"--basetemp={file.parent / 't'}"]
    argv = [sys.executable, "-m", "pytest", *options, file.name]
    result = subprocess.run(
        argv, cwd=file.parent, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"^(\d+) passed in ", result.stdout, re.MULTILINE)
    assert found, result.stdout
    assert int(found[1]) > file.read_text().count("async def test_") > 10


@pytest.mark.qemu
@pytest.mark.parametrize("backend", ["ours", "QEMU's"])
async def test_first_sector_of_any_disk(file: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.syspath_prepend(PROJECT / "examples")
    first_sector = runpy.run_path(str(file))["first_sector"]
    directory = file.parent
    fill_disk(directory)
    socket = directory / "backend"
    ours = command("blk", "--blk-file", str(directory / "disk"), "--socket-path", str(socket))
    running = start_program(directory, ours, "ours") if backend == "ours" else storage_daemon(directory)
    async with running:
        assert await first_sector(socket) == (SECTORS, content(0))
