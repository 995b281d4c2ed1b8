"""What tests leave behind is seen, named and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.leftovers import Traces, left_since

if TYPE_CHECKING:
    from collections.abc import Callable


def leave_file(directory: Path) -> str:
    path = directory / "left"
    path.touch()
    return f"file {path}"


def leave_directory(directory: Path) -> str:
    (directory / "left").mkdir()
    (directory / "left/inner").touch()
    return f"file {directory}/left"


def leave_temporary_file_of_a_program(directory: Path) -> str:
    subprocess.run(["mktemp", directory / "left.XXX"], check=True, stdout=subprocess.DEVNULL)
    return f"file {directory}/left."


def leave_shared_memory(_: Path) -> str:
    with tempfile.NamedTemporaryFile(dir="/dev/shm", delete=False) as file:
        return f"file {file.name}"


def leave_child(_: Path) -> str:
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    return f"process {pid}: "


def leave_zombie(_: Path) -> str:
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return f"process {pid}: (ended, never waited for)"


def leave_daemon(_: Path) -> str:
    command = ["setsid", "--fork", "sh", "-c", "echo $$; exec >/dev/null 2>&1; kill -STOP $$"]
    pid = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return f"process {pid.strip()}: "


@pytest.mark.parametrize(
    "leave",
    [
        leave_file,
        leave_directory,
        leave_temporary_file_of_a_program,
        leave_shared_memory,
        leave_child,
        leave_zombie,
        leave_daemon,
    ],
)
def test_leftover_is_named_and_removed(
    leave: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Traces.of_now(tmp_path)
    text = leave(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tests.leftovers.PATIENCE_SECONDS", 0.05)
        left = left_since(before, tmp_path)
    assert text in str(left)
    left.remove()
    assert not left_since(before, tmp_path)


def test_open_descriptor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.leftovers.PATIENCE_SECONDS", 0.0)
    before = Traces.of_now(tmp_path)
    with Path("/dev/null").open() as file:
        assert str(left_since(before, tmp_path)) == f"descriptor {file.fileno()}: /dev/null"


def test_replaced_descriptor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is the same, what it refers to is not."""
    monkeypatch.setattr("tests.leftovers.PATIENCE_SECONDS", 0.0)
    with Path("/dev/null").open() as file, Path("/dev/zero").open() as other:
        before = Traces.of_now(tmp_path)
        os.dup2(other.fileno(), file.fileno())
        assert str(left_since(before, tmp_path)) == f"descriptor {file.fileno()}: /dev/zero"


def test_nothing_is_left_where_nothing_was_left(tmp_path: Path) -> None:
    assert not left_since(Traces.of_now(tmp_path), tmp_path)


def test_directory_that_another_run_uses_is_not_ours(tmp_path: Path) -> None:
    before = Traces.of_now(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as used:
        Path(used, "file").touch()
        start = 'env -i "$(command -v tail)" -f "$0/file" >/dev/null 2>&1 & echo $!'
        done = subprocess.run(["sh", "-c", start, used], capture_output=True, text=True, check=True)
        try:
            assert not left_since(before, tmp_path)
        finally:
            os.kill(int(done.stdout), signal.SIGKILL)
