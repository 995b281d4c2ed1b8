"""The examples of the rig's README are run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import PROJECT, blocks
from tests.rig.guest import uml_kernel

if TYPE_CHECKING:
    from pathlib import Path

_EXAMPLES = blocks((PROJECT / "tests/rig/README.md").read_text(), "python")


async def _printed(example: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    names: dict[str, object] = {}
    exec(example, names)  # noqa: S102 -- our own document
    run = names["example"]
    assert callable(run)
    await run(directory)
    return capsys.readouterr().out


@pytest.mark.qemu
async def test_qemu_is_started(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = await _printed(_EXAMPLES[0], directory, capsys)
    assert "'status': 'running'" in printed


@pytest.mark.guest
async def test_guest_is_started(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = await _printed(_EXAMPLES[1], directory, capsys)
    assert printed.startswith("0000000 ")


@pytest.mark.uml
@pytest.mark.skipif(uml_kernel.built() is None, reason="User Mode Linux is not built here: `make uml`")
async def test_user_mode_linux_is_started(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = await _printed(_EXAMPLES[2], directory, capsys)
    assert printed.startswith("0000000 ")
    assert "SET_MEM_TABLE" in printed or "ADD_MEM_REG" in printed
