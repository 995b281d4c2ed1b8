"""What users type, and what they read when it was wrong."""

from __future__ import annotations

import argparse
import grp
import os
import pwd

import pytest

from protocol.program.command_line import (
    USAGE_ERROR,
    OneLineParser,
    fail,
    group_id,
    permission_bits,
    user_id,
)
from tests.protocol.program import programs
from tests.protocol.program.child import run_child


def test_usage_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="program")
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--count", "many"])
    assert caught.value.code == USAGE_ERROR
    assert capsys.readouterr().err == (
        "program: argument --count: invalid int value: 'many'; see program --help\n"
    )


def test_failure_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("program", OSError(2, "No such file or directory", "/nowhere")) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "program: [Errno 2] No such file or directory: '/nowhere'\n")


def test_user_and_group_by_name() -> None:
    assert user_id(pwd.getpwuid(os.getuid()).pw_name) == os.getuid()
    assert group_id(grp.getgrgid(os.getgid()).gr_name) == os.getgid()


@pytest.mark.parametrize("number", [0, 1000, 2**32 - 2])
def test_user_and_group_by_number(number: int) -> None:
    assert user_id(str(number)) == number
    assert group_id(str(number)) == number


@pytest.mark.parametrize("text", ["no-such-name", "", "-1", "1.5", str(2**32 - 1), str(2**70)])
def test_no_user_and_no_group(text: str) -> None:
    """The highest number of 32 bits means "leave it as it is" to chown(2)."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"there is no user '{text}'"):
        user_id(text)
    with pytest.raises(argparse.ArgumentTypeError, match=f"there is no group '{text}'"):
        group_id(text)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0", 0), ("777", 0o777)])
def test_permission_bits_are_octal(text: str, mode: int) -> None:
    assert permission_bits(text) == mode


@pytest.mark.parametrize("text", ["", "8", "rw", "-1", "1777", "1000"])
def test_no_permission_bits(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a mode; write it in octal"):
        permission_bits(text)


def test_limit_of_open_files_is_raised_as_far_as_may_be() -> None:
    soft, hard = run_child(programs.raise_limit)
    assert soft == hard
