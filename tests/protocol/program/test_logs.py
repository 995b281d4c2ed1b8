"""Log records as lines, for people and for programs."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.protocol.program import programs
from tests.protocol.program.child import run_child


@pytest.fixture
def path(directory: Path) -> Path:
    return directory / "log"


def test_text_names_the_program_and_what_is_worse_than_information(path: Path) -> None:
    run_child(programs.write_log, str(path), "text", False)
    lines = path.read_text().splitlines()
    times, texts = zip(*(line.split(" ", 1) for line in lines[:3]), strict=True)
    assert texts == ("program: 2 peers", "program: warning: peer 3 has gone", "program: error: it failed")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times), "as QEMU's"
    for time in times:
        assert abs(datetime.now(UTC) - datetime.fromisoformat(time)) < timedelta(minutes=1)
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
    assert re.match(r"before\n\S+Z program: 2 peers\n", path.read_text())


def test_log_that_was_moved_away_is_opened_again(path: Path) -> None:
    run_child(programs.write_log_twice, str(path), str(path.with_name("old")))
    assert path.with_name("old").read_text().endswith(" program: first\n")
    assert path.read_text().endswith(" program: second\n")
    assert "first" not in path.read_text()


def test_log_that_cannot_be_opened_again_goes_on_where_it_was(path: Path) -> None:
    run_child(programs.write_log_twice, str(path), str(path.with_name("old")), True)
    first, complaint, second = path.with_name("old").read_text().splitlines()
    assert first.endswith(" program: first")
    told = f" program: error: cannot open the log {path}: Is a directory; going on in the file that it was"
    assert complaint.endswith(told)
    assert second.endswith(" program: second")


def test_journal_tells_the_time_itself() -> None:
    assert re.fullmatch(r"\S+Z program: hello\n", run_child(programs.log_to_standard_error, False))
    assert run_child(programs.log_to_standard_error, True) == "program: hello\n"


def test_text_that_somebody_else_wrote_is_no_trouble_to_the_log(path: Path) -> None:
    strange = os.fsdecode(os.fsencode(path) + b"-\xff")
    run_child(programs.write_log_that_fails, strange, "\udcff\ud800\xe9")
    assert Path(strange).read_text().splitlines()[0].endswith(" program: \\udcff\\ud800\xe9")


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
