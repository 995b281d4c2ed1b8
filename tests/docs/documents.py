"""The project's documents, and what is in them: code blocks, terminal sessions, tables."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]
DOCUMENTS = sorted([PROJECT / "README.md", PROJECT / "CHANGELOG.md", *(PROJECT / "docs").glob("*.md")])


def read(name: str) -> str:
    """Return the text of a document in docs."""
    return (PROJECT / "docs" / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a document in `language`, at least one."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no code block in {language}"
    return found


def sessions(text: str, prompt: str) -> list[tuple[str, str]]:
    """Return the commands that follow `prompt` ("#" in a guest, "$" on the host), each with its output."""
    found: list[tuple[str, str]] = []
    for block in blocks(text, "console"):
        parts = re.split(r"^([#$]) ", block, flags=re.MULTILINE)[1:]
        for mark, part in zip(parts[::2], parts[1::2], strict=True):
            command, _, output = re.sub(r"\\\n *", "", part).partition("\n")
            if mark == prompt:
                found.append((command, output.removesuffix("\n")))
    assert found, f"there is no command after {prompt}"
    return found
