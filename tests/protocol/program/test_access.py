"""The options that say who may connect to a socket."""

from __future__ import annotations

import os

import pytest

from protocol.program.access import SocketAccess, access_from, add_access_options, given_options
from protocol.program.command_line import OneLineParser


def parsed(*argv: str) -> SocketAccess:
    parser = OneLineParser(prog="program")
    add_access_options(parser)
    return access_from(parser.parse_args(argv))


def test_nothing_is_said_by_default() -> None:
    assert not parsed()


def test_names_and_numbers() -> None:
    assert parsed("--mode", "0660", "--owner", "root", "--group", "12") == {
        "mode": 0o660,
        "owner": 0,
        "group": 12,
    }


def test_what_is_zero_is_said_all_the_same() -> None:
    assert parsed("--mode", "0", "--group", "0") == {"mode": 0, "group": 0}


def test_options_that_were_given_are_named() -> None:
    assert given_options(parsed("--group", "0", "--mode", "0660")) == "--mode and --group"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--mode", "rw-rw----", "argument --mode: 'rw-rw----' is not a mode; write it in octal, as 0660"),
        (
            "--owner",
            "nobody-of-that-name",
            "argument --owner: there is no user 'nobody-of-that-name'; give the number of one",
        ),
        (
            "--group",
            "nobody-of-that-name",
            "argument --group: there is no group 'nobody-of-that-name'; give the number of one",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(option, value)
    assert capsys.readouterr().err == f"program: {said}; see program --help{os.linesep}"
