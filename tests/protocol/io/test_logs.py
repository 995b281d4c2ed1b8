"""Log records as lines, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.protocol.io import programs
from tests.protocol.io.child import run_child

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "log"


def test_text_names_the_program_and_what_is_worse_than_information(path: Path) -> None:
    run_child(programs.write_log, str(path), "text", False)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["program: 2 peers", "program: warning: peer 3 has gone"]
    assert lines[2] == "program: error: it failed"
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_json_has_one_object_a_line_with_extra_fields(path: Path) -> None:
    run_child(programs.write_log, str(path), "json", False)
    information, warning, error = (json.loads(line) for line in path.read_text().splitlines())
    time = datetime.fromisoformat(information.pop("time"))
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=1)
    assert information == {"level": "info", "logger": "some.name", "message": "2 peers"}
    assert (warning["level"], warning["peer"], warning["path"]) == ("warning", 3, "/some/path")
    assert error["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("style", "line"), [("text", "program: detail"), ("json", '"message": "detail"')])
def test_verbose_shows_debug_records(path: Path, style: str, line: str) -> None:
    run_child(programs.write_log, str(path), style, False)
    assert line not in path.read_text()
    path.unlink()
    run_child(programs.write_log, str(path), style, True)
    assert line in path.read_text().splitlines()[-1]


def test_log_is_appended_to(path: Path) -> None:
    path.write_text("before\n")
    run_child(programs.write_log, str(path), "text", False)
    assert path.read_text().startswith("before\nprogram: 2 peers\n")


def test_log_that_cannot_be_opened(directory: Path) -> None:
    assert run_child(programs.fail_to_log, str(directory)) == str(directory)


def test_log_on_a_full_disk_is_told_of_once() -> None:
    assert run_child(programs.write_log_that_fails, "/dev/full", "hello") == [
        "program: cannot write the log /dev/full: No space left on device;"
        " make room, or raise the limit that is reached"
    ]


def test_record_that_is_wrong_is_told_of_with_its_traceback(path: Path) -> None:
    lines = run_child(programs.write_log_that_fails, str(path), "%d")
    assert "Traceback (most recent call last):" in lines
