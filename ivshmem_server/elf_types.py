"""The C types that an ELF's debug information defines, by name."""

from __future__ import annotations

import difflib
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.elf_build import TypeBuilder
from ivshmem_server.elf_entries import KINDS, name_of, unit_name
from ivshmem_server.elf_file import DebugFile, read_debug_file, refusing
from ivshmem_server.elf_model import ElfViewError, layout
from ivshmem_server.elf_search import Query, all_names, definitions, split_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo

    from ivshmem_server.elf_model import CType

# Definitions of one name that are compared with each other. A kernel repeats some in every one of its files.
_MAX_COMPARED = 12
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
        self._path = file.path
        self._dwarf = file.dwarf
        self._builder = TypeBuilder(file.dwarf, little_endian=file.little_endian)

    def find(self, name: str) -> CType:
        """Return the type of this name: `struct NAME`, `union NAME`, `enum NAME`, a typedef, or NAME alone.

        Where files of the program define one name differently, `NAME@FILE.c` chooses one of them. Raises
        ElfViewError if nothing defines the name (with similar ones that exist), or if it is ambiguous.
        """
        query = Query.parse(name)
        with refusing(self._path):
            distinct: dict[tuple[object, ...], tuple[CType, DIE]] = {}
            for die in islice(self._definitions(query), _MAX_COMPARED):
                ctype = self._builder.build(die)
                distinct.setdefault(layout(ctype), (ctype, die))
            if not distinct:
                raise ElfViewError(self._why_missing(query))
        if len(distinct) > 1:
            raise ElfViewError(_ambiguity(query, list(distinct.values())))
        return next(iter(distinct.values()))[0]

    def names(self) -> list[str]:
        """Return the names of all types, as `find` takes them, sorted. Takes minutes for a large ELF."""
        with refusing(self._path):
            return sorted({f"{kind} {name}".strip() for kind, name in self._all_names(sys.maxsize)})

    def _definitions(self, query: Query, *, declared: bool = False) -> Iterator[DIE]:
        for dwarf in self._files():
            yield from definitions(dwarf, query, declared=declared)

    def _all_names(self, limit: int) -> Iterator[tuple[str, str]]:
        for dwarf in self._files():
            yield from all_names(dwarf, limit)

    def _files(self) -> Iterator[DWARFInfo]:
        yield self._dwarf
        if self._dwarf.supplementary_dwarfinfo is not None:
            yield self._dwarf.supplementary_dwarfinfo

    def _why_missing(self, query: Query) -> str:
        split = split_file(self._dwarf)
        if split is not None:
            return (
                f"{self._path} was compiled with -gsplit-dwarf, its types are in {split} and others: "
                "compile without that option"
            )
        missing = f"{self._path} has no {query}"
        others = Query(query.name)
        for die in self._definitions(others):
            return f"{missing}, but defines {_described(die)}"
        for die in self._definitions(others, declared=True):
            return f"{missing}, it only declares {_described(die)}: give the ELF that defines it"
        similar = self._similar(query.name)
        if similar:
            return f"{missing}; did you mean {' or '.join(similar)}?"
        return (
            f"{missing}: compilers leave out types that nothing uses, "
            "declare a variable of it or compile with -fno-eliminate-unused-debug-types"
        )

    def _similar(self, name: str) -> list[str]:
        names = {found.lower(): f"{kind} {found}".strip() for kind, found in self._all_names(_SIMILAR_WITHIN)}
        return [names[close] for close in difflib.get_close_matches(name.lower(), names)]


def _described(die: DIE) -> str:
    return f"{KINDS[str(die.tag)]} {name_of(die)} in {unit_name(die)}".strip()


def _ambiguity(query: Query, found: list[tuple[CType, DIE]]) -> str:
    choices = ", ".join(
        f"'{KINDS[str(die.tag)]} {name_of(die)}@{unit_name(die)}' ({ctype.size} bytes)"
        for ctype, die in found
    )
    return f"{query} has {len(found)} different definitions, give one of: {choices}"
