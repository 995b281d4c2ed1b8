"""The C types that an ELF's debug information defines, by name."""

from __future__ import annotations

import difflib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.elf.build import TypeBuilder
from ivshmem_server.elf.ctypes.model import ElfViewError, layout
from ivshmem_server.elf.dwarf.choices import ambiguity, described
from ivshmem_server.elf.dwarf.entries import KINDS, name_of, unit_name
from ivshmem_server.elf.dwarf.file import refusing
from ivshmem_server.elf.dwarf.query import Query
from ivshmem_server.elf.dwarf.scope import scope_of
from ivshmem_server.elf.dwarf.search import all_names, definitions
from ivshmem_server.elf.files import DebugFiles

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE

    from ivshmem_server.elf.ctypes.model import CType
    from ivshmem_server.elf.dwarf.choices import Definition

# Definitions that are compared with each other. A kernel repeats some in every one of its files.
_MAX_EQUAL, _MAX_DIFFERENT = 12, 40
# How much of the DWARF is read for names similar to one that is missing: about two seconds' worth.
_SIMILAR_WITHIN = 4 << 20


def load_types(path: str | os.PathLike[str]) -> ElfTypes:
    """Read the debug information of an ELF: a program, library, object, kernel module or vmlinux.

    Nothing is parsed yet but the headers, and no file stays open. Raises ElfViewError, one line that
    names the remedy, if the file is no ELF or has no debug information.
    """
    return ElfTypes(DebugFiles(Path(path)))


class ElfTypes:
    """The types of one ELF. Each is looked for and built when it is asked for."""

    def __init__(self, files: DebugFiles) -> None:
        """Take the files that the DWARF is in; `load_types` finds them, too."""
        self._files = files
        self._path = files.path
        self._builder = TypeBuilder(little_endian=files.little_endian, defined=self._defined)

    def find(self, name: str) -> CType:
        """Return the type of this name: `struct NAME`, `union NAME`, `enum NAME`, a typedef, or NAME alone.

        It may have its scope before it, or the end of that: `ns::NAME`, `module::NAME`. Where that is not
        enough to choose one of several definitions, a place behind it does: `NAME@FILE.c`, `NAME@FILE.h:LINE`
        or `NAME@0xOFFSET`, the offset of the entry in the DWARF. Raises ElfViewError if nothing defines the
        name (with similar ones that exist), or if it is ambiguous (with choices that are not).
        """
        query = Query.parse(name)
        with refusing(self._path):
            # A template's or generic type's name without its arguments will do where there is one instance.
            instances = replace(query, is_generic=True)
            found = self._different(query) or self._different(instances)
            return self._only(query, found)

    def find_variable(self, name: str) -> CType:
        """Return the type of the variable of this name, which may have scope and place as for `find`.

        Raises ElfViewError if there is no such variable (with similar ones), or if several have types of
        different layouts (with choices).
        """
        query = Query.parse(name, is_variable=True)
        with refusing(self._path):
            found = self._different(query) or self._different(query, declared=True)
            return self._only(query, found)

    @property
    def warning(self) -> str | None:
        """What to tell a user who is shown a type that was found: that another may be in what is missing."""
        missing = self._files.missing
        return f"{self._path} is not all there is{_why_split(missing)}" if missing else None

    def _defined(self, die: DIE) -> CType | None:
        """Return the type that is declared by this entry and defined elsewhere, None if there is not one."""
        name = name_of(die)
        if name is None:
            return None
        scope = scope_of(die).full
        found = self._different(Query(f"{scope}::{name}" if scope else name, rooted=True))
        return found[0][0] if len(found) == 1 else None

    def _only(self, query: Query, found: list[Definition]) -> CType:
        if not found:
            raise ElfViewError(self._why_missing(query))
        if len(found) > 1:
            raise ElfViewError(ambiguity(query, found))
        return found[0][0]

    def _different(self, query: Query, *, declared: bool = False) -> list[Definition]:
        """Return one definition of the name, all those that were compared if there are different ones."""
        found: list[Definition] = []
        layouts, failure = set(), None
        for die, file in definitions(self._files, query, declared=declared):
            try:
                ctype = self._builder.build(die)
            except ElfViewError as error:
                failure = error
                continue
            found.append((ctype, die, file))
            layouts.add(layout(ctype))
            if len(found) - len(layouts) >= _MAX_EQUAL or len(layouts) >= _MAX_DIFFERENT:
                break
        if failure is not None and not found:
            raise failure
        return found[:1] if len(layouts) == 1 else found

    def names(self) -> list[str]:
        """Return the names of all types, as `find` takes them, sorted.

        Those within functions and classes are left out. It takes a minute or more for a kernel.
        """
        with refusing(self._path):
            return sorted({path for _, path in self._all_names(sys.maxsize, frozenset(KINDS))})

    def _all_names(self, limit: int, tags: frozenset[str]) -> Iterator[tuple[str, str]]:
        for file in self._files:
            yield from all_names(file.dwarf, limit, tags)

    def _why_missing(self, query: Query) -> str:
        return f"{self._path} has no {query}{next(self._explanations(query))}"

    def _explanations(self, query: Query) -> Iterator[str]:
        """Yield what may be the cause and the remedy, likely ones first."""
        if self._files.missing:
            yield _why_split(self._files.missing)
        name = query.names[-1]
        others = Query(name, is_variable=query.is_variable)
        for die, _ in definitions(self._files, others):
            yield f", but defines {described(die)} in {unit_name(die)}"
        for die, _ in definitions(self._files, others, declared=True):
            yield f", it only declares {described(die)} in {unit_name(die)}: give the ELF that defines it"
        for die, _ in definitions(self._files, Query(name, is_variable=not query.is_variable)):
            other = "type: give --struct" if query.is_variable else "variable: give --variable"
            yield f", but a {other} '{described(die)}'"
        if similar := self._similar(query):
            yield f"; did you mean {' or '.join(similar)}?"
        if query.is_variable:
            yield ": give the type of what the memory holds with --struct"
        yield (
            ": compilers leave out types that nothing uses, "
            "declare a variable of it or compile with -fno-eliminate-unused-debug-types"
        )

    def _similar(self, query: Query) -> list[str]:
        """Return names much like the one that is missing: with its scope, or alone if that has none."""
        names: dict[str, str] = {}
        scoped = "::" in query.path
        tags = replace(query, kind=None).tags
        for name, path in self._all_names(_SIMILAR_WITHIN, tags):
            names.setdefault((path.partition(" ")[2] or path if scoped else name).lower(), path)
        close = difflib.get_close_matches(query.path.lower(), names)
        return list(dict.fromkeys(names[name] for name in close))


def _why_split(missing: list[str]) -> str:
    first, *more = missing
    count = f" ({len(more)} more like this)" if more else ""
    return (
        f": its debug information was split off, and {first}{count}: "
        "build it again, put it beside the program, or make a package with `dwp -e`"
    )
