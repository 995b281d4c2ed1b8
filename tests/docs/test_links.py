"""The documents' links lead somewhere: to a file of the project, and to a heading in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.documents import DOCUMENTS, PROJECT

if TYPE_CHECKING:
    from pathlib import Path


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub and GitLab make of a document's headings."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> list[str]:
    """Return where a document's links lead that are relative."""
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", document.read_text())
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_reached_from_the_readme() -> None:
    seen, todo = set(), [PROJECT / "README.md"]
    while todo:
        document = todo.pop().resolve()
        if document not in seen:
            seen.add(document)
            paths = (link.partition("#")[0] for link in links(document))
            todo += [document.parent / path for path in paths if path.endswith(".md")]
    assert {document.resolve() for document in DOCUMENTS} <= seen
