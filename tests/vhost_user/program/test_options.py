"""The options that every device has."""

from __future__ import annotations

import pytest

from tests.vhost_user.program.cli_program import refusal


def test_device_is_to_be_given() -> None:
    assert refusal("run", code=2).startswith("vhost-user run: the following arguments are required: DEVICE;")


@pytest.mark.parametrize("argv", [[], ["-s", "a", "--fd", "3"], ["-s", "a", "--connect", "b"]])
def test_one_socket_is_to_be_given(argv: list[str]) -> None:
    line = refusal("run", "rng", *argv, code=2)
    assert "give one of --socket-path, --fd and --connect; see vhost-user run rng --help" in line


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["-m", "0"], "argument -m/--max-bytes: '0' is not a number from 1"),
        (["-p", "soon"], "argument -p/--period: 'soon' is not a time; write it as 20ms"),
        (["--fd", "-1"], "argument --fd: '-1' is not a number from 0"),
        (["--log-format", "xml"], "argument --log-format: invalid choice: 'xml'"),
        (
            ["--without", "SPEED"],
            "argument --without: 'SPEED' is not a feature of rng; there are NOTIFY_ON_EMPTY, ",
        ),
        (["--without", "NONE"], "argument --without: 'NONE' is not a feature"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_options_are_named(argv: list[str], text: str) -> None:
    assert text in refusal("run", "rng", "-s", "/tmp/a", *argv, code=2)
