"""The product's modules and their imports, as its text has them: type-only ones are imports, too."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "ivshmem_server", "vhost_user")


def product_files() -> list[Path]:
    """Return the product's Python files, relative to ROOT."""
    return sorted(path.relative_to(ROOT) for top in PACKAGES for path in (ROOT / top).rglob("*.py"))


def name_of(path: Path) -> str:
    """Return what a file is imported as."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Return the modules that each module imports, of the product's own."""
    files = {name_of(path): path for path in product_files()}
    return {name: set(_imported(ROOT / path, files)) - {name} for name, path in files.items()}


def _imported(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield from ({full, node.module} & files.keys()) if full not in files else {full}
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & files.keys()


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of nodes that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in order:
            visit(node)
    return found
