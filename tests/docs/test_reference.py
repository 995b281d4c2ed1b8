"""docs/reference describes every public name, and is what `make reference` writes."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

from tests.docs.reference import PAGES, pages
from tests.docs.reference import __doc__ as how


def exporting() -> list[str]:
    """Return the packages that export something, found by importing all."""
    found = []
    for top in ("protocol", "ivshmem_server", "vhost_user"):
        package = importlib.import_module(top)
        names = [
            top,
            *(each.name for each in pkgutil.walk_packages(package.__path__, f"{top}.") if each.ispkg),
        ]
        found += [name for name in names if getattr(importlib.import_module(name), "__all__", ())]
    return found


@pytest.mark.parametrize("package", exporting())
def test_every_public_name_is_described(package: str) -> None:
    page = (PAGES / f"{package}.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", page, re.MULTILINE | re.DOTALL))
    names = list(importlib.import_module(package).__all__)
    assert list(sections) == names
    undescribed = [
        name for name, text in sections.items() if not re.sub(r"```.*?```", "", text, flags=re.DOTALL).strip()
    ]
    assert undescribed == []


def test_pages_are_what_make_reference_writes() -> None:
    made = pages()
    assert {path.name for path in PAGES.iterdir()} == {path.name for path in made}
    stale = [path.name for path, text in made.items() if path.read_text() != text]
    assert stale == [], f"run make reference ({how})"
