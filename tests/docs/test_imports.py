"""Documents and examples import only what the packages export: the public names, and no others."""

from __future__ import annotations

import ast
import importlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import DOCUMENTS, PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

PACKAGES = ("protocol", "ivshmem_server", "vhost_user")
PLUGIN = "vhost_user.testing"
"""The one module that users import: pytest finds its fixtures there."""

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?:\(.*\))?`")


def sources() -> list[tuple[str, str]]:
    """Return the code in documents and examples, each with its place."""
    found = [(path.name, path.read_text()) for path in sorted((PROJECT / "examples").glob("*.py"))]
    for path in DOCUMENTS:
        found += [(path.name, block) for block in PYTHON.findall(path.read_text())]
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Return the modules of ours that are imported, and the names from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.name, None) for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, each.name) for each in node.names)


def attributes(tree: ast.AST) -> Iterator[str]:
    """Return the dotted names that begin with a package of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node).partition(".")[0] in PACKAGES:
            yield ast.unparse(node)


def check(name: str) -> ModuleType:
    """Return the module `name`, which users may import."""
    module = importlib.import_module(name)
    assert hasattr(module, "__path__") or name == PLUGIN, f"{name} is a module; export its names"
    return module


def check_dotted(dotted: str) -> None:
    """Follow a dotted name as far as it goes through packages; what comes then is exported there."""
    module = importlib.import_module(dotted.partition(".")[0])
    for part in dotted.split(".")[1:]:
        if part in module.__all__ or part == "__version__":
            return
        module = check(f"{module.__name__}.{part}")


@pytest.mark.parametrize(("place", "code"), sources())
def test_code_imports_public_names_alone(place: str, code: str) -> None:
    tree = ast.parse(code)
    for module, name in imports(tree):
        if module.partition(".")[0] in PACKAGES:
            found = check(module)
            assert name is None or name in found.__all__, f"{place}: {module} does not export {name}"
    for dotted in attributes(tree):
        check_dotted(dotted)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_text_names_public_names_alone(path: Path) -> None:
    for dotted in NAME.findall(path.read_text()):
        if not dotted.endswith((".py", ".md")):
            check_dotted(dotted)


@pytest.mark.parametrize(
    "code",
    [
        "from vhost_user.device.device import VirtioDevice",
        "import vhost_user.queue.virtqueue",
        "from vhost_user import queue",
    ],
)
def test_import_of_a_module_is_found(code: str) -> None:
    with pytest.raises(AssertionError):
        test_code_imports_public_names_alone("here", code)
