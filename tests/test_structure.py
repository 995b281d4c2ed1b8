"""The layout holds what docs/architecture.md promises: sizes, names, circles, mirrored tests, exports."""

from __future__ import annotations

import ast
import importlib
import io
import tokenize
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.modules import ROOT, circles, imports, name_of, product_files
from tests.tested_by import TESTED_BY

if TYPE_CHECKING:
    from pathlib import Path

MOST_FILES = 15
"""Files in a folder, its __init__.py among them."""

VAGUE_NAMES = frozenset(
    {"base", "checks", "groups", "means", "misc", "once", "table", "util", "utils", "values"}
)

LONGEST_SUMMARY = 90

COMMENT_SHARE = 0.03
COMMENTED = ("vhost_user/ring", "vhost_user/queue/virtqueue.py", "vhost_user/backend")
"""Where memory and state are shared with others, and the comments say how it works."""

MOST_MEMBERS = 5
"""Members of a Protocol by which a module refers back to who uses it."""

INTERFACES = {"vhost_user.devices.blk.disk": "Disk"}
"""Protocols that are no back-references: users implement them, and a disk can do what a disk can do."""


def folder_sizes() -> Counter[Path]:
    return Counter(path.parent for path in product_files())


@pytest.mark.parametrize("folder", sorted(set(folder_sizes())), ids=str)
def test_folder_is_one_that_a_reader_takes_in_at_once(folder: Path) -> None:
    assert folder_sizes()[folder] <= MOST_FILES


def test_every_folder_is_a_package_with_a_summary() -> None:
    for folder in set(folder_sizes()):
        text = (ROOT / folder / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(text)), f"{folder}/__init__.py does not say what is in there"


def test_no_name_says_nothing() -> None:
    assert not [path for path in product_files() if path.stem in VAGUE_NAMES]


def test_no_file_name_repeats_its_folder() -> None:
    """A file may have the name of its folder: it is the folder's main one."""
    repeated = [path for path in product_files() if path.stem.startswith(f"{path.parent.name}_")]
    assert repeated == []


@pytest.mark.parametrize("path", product_files(), ids=str)
def test_summary_fits_a_line_of_a_list(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    assert docstring, f"{path} has no docstring"
    assert len(docstring.splitlines()[0]) <= LONGEST_SUMMARY


def test_imports_go_in_no_circle() -> None:
    """Type-only imports count: what cannot be thought of alone cannot be read alone."""
    graph = imports()
    assert circles(graph) == []


def test_packages_import_in_no_circle() -> None:
    """A room does not depend on one that depends on it. A package and those within it are one another's."""
    rooms: dict[str, set[str]] = {}
    for module, others in imports().items():
        room = _room(module)
        rooms.setdefault(room, set()).update({_room(other) for other in others} - {room})
    within = {room: {other for other in others if not _nested(room, other)} for room, others in rooms.items()}
    assert circles(within) == []


def _room(module: str) -> str:
    """Return the package of a module; the modules at the top of a product are rooms of their own."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        return module
    package = module.rpartition(".")[0]
    return module if "." not in package else package


def _nested(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def comment_share(paths: list[Path]) -> float:
    lines = comments = 0
    for path in paths:
        text = (ROOT / path).read_text()
        lines += len(text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(
            token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip() for token in tokens
        )
    return comments / lines


@pytest.mark.parametrize("place", COMMENTED)
def test_comments_say_how_shared_state_works(place: str) -> None:
    paths = [path for path in product_files() if str(path).startswith(place)]
    assert comment_share(paths) >= COMMENT_SHARE


def back_references() -> list[tuple[str, str, int]]:
    """Return the Protocols of the product, each with its module, and how many members it has."""
    found = []
    for path in product_files():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef) and any(_is_protocol(each) for each in node.bases):
                members = [
                    each
                    for each in node.body
                    if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign))
                ]
                found.append((name_of(path), node.name, len(members)))
    return found


def _is_protocol(base: ast.expr) -> bool:
    base = base.value if isinstance(base, ast.Subscript) else base
    return isinstance(base, ast.Name) and base.id == "Protocol"


def test_back_references_are_small() -> None:
    large = [(module, name) for module, name, count in back_references() if count > MOST_MEMBERS]
    assert large == [*INTERFACES.items()]


def packages() -> list[str]:
    return [name_of(path) for path in product_files() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", packages())
def test_exports_are_sorted_complete_and_there(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    names = getattr(module, "__all__", [])
    assert list(names) == sorted(
        set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(hasattr(module, name) for name in names)
    public = {name for name in imported if not name.startswith("_")}
    assert public <= {*names} or not names


def test_each_file_has_its_tests_at_the_same_path() -> None:
    """Or beside a neighbour that it is a part of: `TESTED_BY` says which."""
    elsewhere = {path: test for test, paths in TESTED_BY.items() for path in paths}
    own = {
        path for path in product_files() if (ROOT / "tests" / path.parent / f"test_{path.stem}.py").exists()
    }
    missing = {str(path) for path in product_files() if path.name != "__init__.py" and path not in own}
    assert missing - elsewhere.keys() == set(), "give them a test file, or say which one tests them"
    assert elsewhere.keys() - missing == set(), "they have a test file, or are gone"
    assert [test for test in TESTED_BY if not (ROOT / "tests" / test).exists()] == []
