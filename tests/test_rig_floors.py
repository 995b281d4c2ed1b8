"""The folders of the tests' rig import each other in one direction only."""

from __future__ import annotations

import ast
from pathlib import Path

_RIG = Path(__file__).parent / "rig"
_FLOORS = ["debian", "programs", "qemu", "guest", "scenarios"]
"""From the lowest up: each may import those before it."""


def _imported(path: Path) -> set[str]:
    """Return the folders of the rig that a file imports from, also for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[2] for name in names if name.startswith("tests.rig.")}


def test_folders_import_only_those_below() -> None:
    assert {path.parent.name for path in _RIG.glob("*/__init__.py")} == set(_FLOORS)
    above = {
        f"{path.relative_to(_RIG)} imports {name}"
        for floor, folder in enumerate(_FLOORS)
        for path in (_RIG / folder).glob("*.py")
        for name in _imported(path)
        if name not in _FLOORS[: floor + 1]
    }
    assert not above
