"""docs/reference: the public names of each package, made from its text: `python -m tests.docs.reference`.

griffe reads the packages without running them, so the pages are the same with each Python. Each name is
on the page of the package that exports it; a name that several packages export is described on the page
of the one whose room defines it, and the others point there.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING

import griffe

from tests.docs.documents import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = PROJECT / "docs/reference"
PRODUCT = ("vhost_user", "ivshmem_server", "protocol")
MODULES = ("vhost_user.testing",)
"""Public ones that are no packages: all that they define counts."""

_UNWANTED = frozenset({"__enter__", "__exit__", "__init__"})


def load() -> griffe.GriffeLoader:
    """Return a loader that has read the product."""
    loader = griffe.GriffeLoader(search_paths=[str(PROJECT)])
    for name in PRODUCT:
        loader.load(name)
    loader.resolve_aliases()
    return loader


def public_packages(loader: griffe.GriffeLoader) -> dict[str, griffe.Module]:
    """Return the packages that export something, by their names, and MODULES."""
    found: dict[str, griffe.Module] = {}

    def visit(module: griffe.Module) -> None:
        if module.exports or module.path in MODULES:
            found[module.path] = module
        for each in module.modules.values():
            if not each.is_alias:
                visit(each)

    for name in PRODUCT:
        visit(loader.modules_collection[name])
    return dict(sorted(found.items()))


def names_of(module: griffe.Module) -> list[str]:
    """Return the public names of a package, in the order of its `__all__`."""
    if module.exports:
        return [str(name) for name in module.exports]
    return [name for name, each in module.members.items() if not (each.is_alias or name.startswith("_"))]


def pages() -> dict[Path, str]:
    """Return all pages by their paths."""
    packages = public_packages(load())
    made = {PAGES / f"{name}.md": _page(module, packages) for name, module in packages.items()}
    made[PAGES / "README.md"] = _index(packages)
    return made


def _index(packages: dict[str, griffe.Module]) -> str:
    rows = [f"| [{name}]({name}.md) | {_summary(module)} |" for name, module in packages.items()]
    head = "# Reference\n\nThe public names of each package, from its docstrings (`make reference`)."
    return "\n".join([head, "", "| package | |", "|---|---|", *rows, ""])


def _page(module: griffe.Module, packages: dict[str, griffe.Module]) -> str:
    parts = [f"# {module.path}", _text(module)]
    for name in names_of(module):
        each = module.members[name]
        target = each.final_target if isinstance(each, griffe.Alias) else each
        home = _home(target, name, packages)
        if home != module.path:
            parts.append(
                f"## {name}\n\n{_summary(target)} See [{home}]({home}.md#{name.lower()}).".replace(
                    "\n\n See", "\n\nSee"
                )
            )
        else:
            parts += [f"## {name}", *_described(target, name)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _home(target: griffe.Object, name: str, packages: dict[str, griffe.Module]) -> str:
    """Return the package that describes a name: the outermost around its definition that exports it."""
    exporting = [
        path for path, module in packages.items() if name in names_of(module) and _same(module, name, target)
    ]
    around = [path for path in exporting if f"{target.path}.".startswith(f"{path}.")]
    return min(around or exporting, key=len)


def _same(module: griffe.Module, name: str, target: griffe.Object) -> bool:
    each = module.members[name]
    return (each.final_target if isinstance(each, griffe.Alias) else each).path == target.path


def _described(target: griffe.Object, name: str) -> Iterator[str]:
    if isinstance(target, griffe.Module):
        yield _text(target)
        for own in names_of(target):
            found = target.members[own]
            found = found.final_target if isinstance(found, griffe.Alias) else found
            yield from _member(found, f"{name}.{own}", 3)
        return
    if (code := _signature(target, name)) is not None:
        yield code
    yield _text(target)
    if isinstance(target, griffe.Class):
        for member, inner in target.members.items():
            if _is_public(member) and isinstance(inner, griffe.Object):
                yield from _member(inner, f"{name}.{member}", 3)


def _member(each: griffe.Object, name: str, level: int) -> Iterator[str]:
    text = _text(each)
    if not text and not isinstance(each, griffe.Function):
        return
    yield f"{'#' * level} {name}"
    if (code := _signature(each, name.rpartition(".")[2])) is not None:
        yield code
    yield text


def _is_public(name: str) -> bool:
    return not name.startswith("_") and name not in _UNWANTED


def _signature(target: griffe.Object, name: str) -> str | None:
    if isinstance(target, griffe.Function):
        prefix = "async " if "async" in target.labels else ""
        returned = f" -> {target.returns}" if target.returns is not None else ""
        return f"```python\n{prefix}def {name}({_parameters(target)}){returned}\n```"
    if isinstance(target, griffe.Class):
        bases = ", ".join(str(base) for base in target.bases)
        init = target.members.get("__init__")
        made = f"\n{name}({_parameters(init)})" if isinstance(init, griffe.Function) else ""
        return f"```python\nclass {name}{f'({bases})' if bases else ''}{made}\n```"
    if isinstance(target, griffe.Attribute):
        kind = f": {target.annotation}" if target.annotation is not None else ""
        value = f" = {target.value}" if target.value is not None and len(str(target.value)) <= 60 else ""
        return f"```python\n{name}{kind}{value}\n```" if kind or value else None
    return None


def _parameters(function: griffe.Function) -> str:
    parts: list[str] = []
    keyword_only = False
    for each in function.parameters:
        if each.name in {"self", "cls"}:
            continue
        star = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}.get(
            each.kind, ""
        )
        if each.kind is griffe.ParameterKind.keyword_only and not keyword_only:
            keyword_only = True
            if not any(part.startswith("*") for part in parts):
                parts.append("*")
        kind = f": {each.annotation}" if each.annotation is not None else ""
        default = "" if each.default is None or star else f" = {each.default}"
        parts.append(f"{star}{each.name}{kind}{default}")
    return ", ".join(parts)


def _summary(target: griffe.Object) -> str:
    return " ".join(_text(target).split("\n\n")[0].split())


def _text(target: griffe.Object) -> str:
    """Return a docstring as Markdown; of a class with an __init__ that has one, both."""
    texts = [target.docstring.value] if target.docstring else []
    if (
        isinstance(target, griffe.Class)
        and (init := target.members.get("__init__")) is not None
        and init.docstring
    ):
        texts.append(init.docstring.value)
    return "\n\n".join(_markdown(text) for text in texts)


def _markdown(text: str) -> str:
    """Fence the blocks that a docstring begins with `::`."""

    def fenced(match: re.Match[str]) -> str:
        head = match[1].rstrip()
        block = textwrap.dedent(match[2]).strip("\n")
        return f"{head}:\n\n```python\n{block}\n```\n\n" if head else f"```python\n{block}\n```\n\n"

    return re.sub(
        r"^(.*?)::\n\n((?:(?:    .*)?\n)+(?:    .*)?)", fenced, f"{text}\n", flags=re.MULTILINE
    ).strip()


def main() -> int:
    """Write the pages, and remove those of packages that are gone."""
    made = pages()
    PAGES.mkdir(exist_ok=True)
    for path in set(PAGES.glob("*.md")) - made.keys():
        path.unlink()
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
