"""QEMU's options as command lines print them."""

from __future__ import annotations

import shlex

import pytest

from protocol.program.qemu import quoted, socket_chardev


@pytest.mark.parametrize(
    ("value", "text"), [("plain", "plain"), ("a,b", "a,,b"), (",", ",,"), ("a,,b", "a,,,,b"), ("", "")]
)
def test_comma_is_given_twice(value: str, text: str) -> None:
    assert quoted(value) == text


def test_chardev_is_one_word_for_a_shell() -> None:
    text = socket_chardev(",server=on", path="/tmp/with space,comma", id="c0")
    assert shlex.split(text) == ["-chardev", "socket,id=c0,path=/tmp/with space,,comma,server=on"]


def test_path_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert socket_chardev(path="tmp/s") == "-chardev socket,path=/tmp/s"
