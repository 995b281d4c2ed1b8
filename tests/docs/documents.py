"""The project's documents, and what is in them: code blocks, terminal sessions, tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

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


class Command(NamedTuple):
    """A command in a terminal session, and what the document says it prints."""

    on_host: bool
    text: str
    output: str


def session(text: str) -> list[Command]:
    """Return the commands of a document's terminal sessions: after "$" on the host, after "#" in a guest."""
    found = []
    for block in blocks(text, "console"):
        parts = re.split(r"^([#$]) ", block.replace("\\\n   ", ""), flags=re.MULTILINE)[1:]
        for prompt, part in zip(parts[::2], parts[1::2], strict=True):
            command, _, output = part.partition("\n")
            while command.count("'") % 2:
                more, _, output = output.partition("\n")
                command += more
            found.append(Command(prompt == "$", command, output.removesuffix("\n")))
    return found
