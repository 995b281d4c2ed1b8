"""The C types that an ELF's debug information defines, by name."""

from __future__ import annotations

import difflib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.elf_build import TypeBuilder
from ivshmem_server.elf_choices import ambiguity, described
from ivshmem_server.elf_entries import unit_name
from ivshmem_server.elf_file import DebugFile, read_debug_file, refusing
from ivshmem_server.elf_model import ElfViewError, layout
from ivshmem_server.elf_query import Query
from ivshmem_server.elf_search import all_names, definitions, split_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from ivshmem_server.elf_choices import Definition
    from ivshmem_server.elf_model import CType

# Definitions that are compared with each other. A kernel repeats some in every one of its files.
_MAX_EQUAL, _MAX_DIFFERENT = 12, 40
# How much of the DWARF is read for names similar to one that is missing: about two seconds' worth.
_SIMILAR_WITHIN = 4 << 20


def load_types(path: str | os.PathLike[str]) -> ElfTypes:
    """Read the debug information of an ELF: a program, library, object, kernel module or vmlinux.

    Nothing is parsed yet but the headers, and no file stays open. Raises ElfViewError, one line that
    names the remedy, if the file is no ELF or has no debug information.
    """
    return ElfTypes(read_debug_file(Path(path)))


class ElfTypes:
    """The types of one ELF. Each is looked for and built when it is asked for."""

    def __init__(self, file: DebugFile) -> None:
        """Take what `read_debug_file` returned; `load_types` does both."""
        self._file = file
        self._path = file.path
        self._builder = TypeBuilder(little_endian=file.little_endian)

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
            for attempt in (query, replace(query, is_generic=True)):
                found = self._different(attempt)
                if len(found) == 1:
                    return found[0][0]
                if found:
                    raise ElfViewError(ambiguity(query, found))
            raise ElfViewError(self._why_missing(query))

    def _different(self, query: Query) -> list[Definition]:
        """Return one definition of the name, all those that were compared if there are different ones."""
        found: list[Definition] = []
        layouts, failure = set(), None
        for die, file in definitions(self._files, query):
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
            return sorted({path for _, path in self._all_names(sys.maxsize)})

    def _all_names(self, limit: int) -> Iterator[tuple[str, str]]:
        for file in self._files():
            yield from all_names(file.dwarf, limit)

    def _files(self) -> Iterator[DebugFile]:
        yield self._file
        shared = self._file.dwarf.supplementary_dwarfinfo
        if shared is not None:
            yield replace(self._file, dwarf=shared)

    def _why_missing(self, query: Query) -> str:
        split = split_file(self._file.dwarf)
        if split is not None:
            return (
                f"{self._path} was compiled with -gsplit-dwarf, its types are in {split} and others: "
                "compile without that option"
            )
        missing = f"{self._path} has no {query}"
        others = Query(query.names[-1])
        for die, _ in definitions(self._files, others):
            return f"{missing}, but defines {described(die)} in {unit_name(die)}"
        for die, _ in definitions(self._files, others, declared=True):
            return (
                f"{missing}, it only declares {described(die)} in {unit_name(die)}: "
                "give the ELF that defines it"
            )
        similar = self._similar(query)
        if similar:
            return f"{missing}; did you mean {' or '.join(similar)}?"
        return (
            f"{missing}: compilers leave out types that nothing uses, "
            "declare a variable of it or compile with -fno-eliminate-unused-debug-types"
        )

    def _similar(self, query: Query) -> list[str]:
        """Return names much like the one that is missing: with its scope, or alone if that has none."""
        names: dict[str, str] = {}
        scoped = "::" in query.path
        for name, path in self._all_names(_SIMILAR_WITHIN):
            names.setdefault((path.partition(" ")[2] or path if scoped else name).lower(), path)
        close = difflib.get_close_matches(query.path.lower(), names)
        return list(dict.fromkeys(names[name] for name in close))
