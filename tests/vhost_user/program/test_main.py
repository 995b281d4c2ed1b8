"""The commands of vhost-user, and the programs of the devices."""

from __future__ import annotations

import pytest

from vhost_user.devices import DEVICES
from vhost_user.program import main


@pytest.mark.parametrize("name", DEVICES)
def test_row_of_the_table_is_a_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        getattr(main, name)(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"vhost-user-{name} (qemu-companion) ")


def test_other_names_are_no_programs() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = main.nothing


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("vhost_user.program.list.ask", interrupted)
    assert main.main(["list"]) == 130
    assert capsys.readouterr().err == ""
