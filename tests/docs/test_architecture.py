"""docs/architecture.md is true: its rooms, the names in its walks, and its states are the code's."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import PROJECT, read
from vhost_user.backend.vring_states import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = read("architecture.md")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rooms_are_all_that_there_are() -> None:
    tops = ("protocol", "ivshmem_server", "vhost_user")
    folders = {
        str(path.parent.relative_to(PROJECT)) for top in tops for path in (PROJECT / top).rglob("__init__.py")
    }
    assert {room.strip("`") for room, _ in rows("The rooms")} == folders


def definitions(path: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.parse((PROJECT / path).read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        yield f"{node.name}.{each.name}", each


@pytest.mark.parametrize(("path", "name"), re.findall(r"`([a-z_/]+\.py)`\s+`([A-Za-z_.]+)`", PAGE))
def test_what_a_walk_names_is_there(path: str, name: str) -> None:
    assert name in dict(definitions(path))


def test_methods_that_a_walk_names_are_there() -> None:
    """`Class.method` without a file is of a class of the product."""
    every = {
        name
        for top in ("protocol", "ivshmem_server", "vhost_user")
        for path in (PROJECT / top).rglob("*.py")
        for name, _ in definitions(str(path.relative_to(PROJECT)))
    }
    walks = PAGE.partition("\n## A kick")[2].partition("\n## The states")[0]
    methods = set(re.findall(r"`([A-Z][A-Za-z]+\._?[a-z_]+)`", walks))
    assert len(methods) > 10
    assert methods <= every


def test_states_are_those_of_the_code() -> None:
    table = [[state.name, event.name, after.name] for (state, event), after in TRANSITIONS.items()]
    assert rows("The states of a vring") == table


CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z_]+/[a-z_/]+(?:\.py|/))`", CONTRIBUTING))))
def test_places_that_contributing_names_are_there(path: str) -> None:
    assert (PROJECT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z][a-z-]+)", CONTRIBUTING))))
def test_targets_that_contributing_names_are_there(target: str) -> None:
    assert re.search(rf"^{target}:", (PROJECT / "Makefile").read_text(), re.MULTILINE)
