"""Classes that a command line names as MODULE:CLASS."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from protocol.program.command_line import UserError
from vhost_user.own_code.class_loading import load_class

if TYPE_CHECKING:
    from pathlib import Path


def test_class_of_a_module() -> None:
    assert load_class("pathlib:Path", "thing") is __import__("pathlib").Path
    assert load_class("pathlib:Nothing", "thing") is None


@pytest.mark.parametrize("where", ["", ":", "a", "a:", ":A", "a.:A", "a:b c", "a:B.C", "a [x]:B"])
def test_name_that_is_none(where: str) -> None:
    with pytest.raises(UserError, match="names no thing; give MODULE:CLASS, as in "):
        load_class(where, "thing")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'; is it installed"),
        ("raise ImportError('two\\nlines')", "two lines; is it installed"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Own(BaseException): pass\nraise Own('stop')", "Own: stop"),
        ("raise ValueError('no')", "ValueError: no"),
    ],
)
def test_module_that_cannot_be_imported(
    directory: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str
) -> None:
    (directory / "broken_one.py").write_text(source)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    with pytest.raises(UserError, match="cannot import broken_one: ") as raised:
        load_class("broken_one:Device", "device")
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_interrupt_of_the_user_passes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "slow_one.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(directory)
    with pytest.raises(KeyboardInterrupt):
        load_class("slow_one:Device", "device")
