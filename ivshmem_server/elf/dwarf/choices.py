"""Several definitions of one name: the choices that a user has, each selecting one."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ivshmem_server.elf.ctypes.model import layout
from ivshmem_server.elf.dwarf.entries import kind_of, unit_name
from ivshmem_server.elf.dwarf.query import Query, selected
from ivshmem_server.elf.dwarf.scope import name_in_source, scope_of, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from elftools.dwarf.die import DIE

    from ivshmem_server.elf.ctypes.model import CType
    from ivshmem_server.elf.dwarf.debug_info import DebugFile

Definition = tuple["CType", "DIE", "DebugFile"]
"""A type, the entry that it was built from, and the file that this is in."""


def ambiguity(query: Query, found: Sequence[Definition]) -> str:
    """Return the text of an error: one choice for each of the different definitions among `found`."""
    distinct: dict[object, Definition] = {}
    for definition in found:
        distinct.setdefault(layout(definition[0]), definition)
    choices = ", ".join(
        f"{_quoted(_choice(query, definition, found))} ({definition[0].size} bytes)"
        for definition in distinct.values()
    )
    return f"{query} has {len(distinct)} different definitions, give one of: {choices}"


def _quoted(text: str) -> str:
    """Return the text as a shell takes it: clang's names of templates may have quotes in them."""
    return shlex.quote(text) if "'" in text else f"'{text}'"


def described(die: DIE) -> str:
    """Return the full name of a type or variable, as a query takes it."""
    scope = scope_of(die).full
    word = kind_of(die)
    return f"{word} {scope}{'::' if scope else ''}{name_in_source(die)}".strip()


def _choice(query: Query, definition: Definition, found: Sequence[Definition]) -> str:
    """Return the shortest text that selects this definition, and among the others only those like it."""
    ctype, die, file = definition
    entries = [(other, holder) for _, other, holder in found]
    wanted = {id(other) for same, other, _ in found if layout(same) == layout(ctype)}
    text = ""
    for text in _candidates(die, file):
        chosen = {id(other) for other in selected(Query.parse(text, is_variable=query.is_variable), entries)}
        if id(die) in chosen and chosen <= wanted:
            break
    return text


def _candidates(die: DIE, file: DebugFile) -> Iterator[str]:
    name, unit = described(die), unit_name(die)
    yield name
    if not scope_of(die).full:
        kind, _, path = name.rpartition(" ")
        yield f"{kind} ::{path}".strip()
    yield f"{name}@{unit}"
    source = source_of(die)
    if source is not None:
        path, line = source
        yield f"{name}@{path.rpartition('/')[2]}:{line}"
        yield f"{name}@{path}:{line}"
    offset = file.base + die.offset
    yield f"{name}@{offset:#x}"
    yield f"{name}@{file.path.name}:{offset:#x}"
    yield f"{name}@{file.path}:{offset:#x}"
