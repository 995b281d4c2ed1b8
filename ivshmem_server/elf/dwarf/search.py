"""The entries that define a type of a name, found without parsing all of the DWARF."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from elftools.dwarf.compileunit import CompileUnit

from ivshmem_server.elf.dwarf.entries import is_declaration, kind_of, name_of
from ivshmem_server.elf.dwarf.mentions import Mentions
from ivshmem_server.elf.dwarf.outline import entries
from ivshmem_server.elf.dwarf.scope import NAMESPACES, parent_of, qualified_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo
    from elftools.dwarf.typeunit import TypeUnit

    from ivshmem_server.elf.dwarf.debug_info import DebugFile
    from ivshmem_server.elf.dwarf.query import Query


def definitions(
    files: Iterable[DebugFile], query: Query, *, declared: bool = False
) -> Iterator[tuple[DIE, DebugFile]]:
    """Yield the entries that define what is asked for, or only declare it, in the order of the files.

    Units that cannot have one are passed over unparsed. Where the query names a source file, that is one of
    those that were compiled, and a header only if none of those is called so.
    """
    for by_unit in (True, False) if query.has_place else (True,):
        found = False
        for file in files:
            for die in _defined_in(file, query, declared=declared, by_unit=by_unit):
                found = True
                yield die, file
        if found:
            return


def _defined_in(file: DebugFile, query: Query, *, declared: bool, by_unit: bool) -> Iterator[DIE]:
    mentions = Mentions(file.dwarf, query.beginnings, is_beginning=query.is_generic)
    for unit in file.dwarf.iter_CUs():
        if _may_define(unit, file.base, query, mentions, declared=declared):
            fresh = _transient(unit)
            if (
                not by_unit
                or query.line is not None
                or query.offset is not None
                or query.is_in(fresh.get_top_DIE())
            ):
                found = entries(fresh, query.tags, mentions.names_in(unit))
                yield from _chosen(found, file, query, declared=declared, by_unit=by_unit)
    for type_unit in file.dwarf.iter_TUs() if mentions.in_types else ():
        found = entries(type_unit, query.tags)
        yield from _chosen(found, file, query, declared=declared, by_unit=by_unit)


def _may_define(unit: CompileUnit, base: int, query: Query, mentions: Mentions, *, declared: bool) -> bool:
    start = base + unit.cu_offset
    if query.offset is not None and not start <= query.offset < start + unit.size:
        return False
    if query.is_variable:
        # A definition may name its variable by referring to the declaration.
        return mentions.mentioned_in(unit)
    return mentions.defined_in(unit, query.tags, declared=declared)


def _chosen(
    found: Iterator[DIE], file: DebugFile, query: Query, *, declared: bool, by_unit: bool
) -> Iterator[DIE]:
    for die in found:
        if (
            is_declaration(die) == declared
            and query.is_named(die)
            and query.selects(die, file, by_unit=by_unit)
        ):
            yield die


def all_names(dwarf: DWARFInfo, limit: int, tags: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of what has one of these tags, alone and as a query takes it.

    What is within functions and classes is left out, and what is not in the first `limit` bytes of DWARF.
    """
    for unit in takewhile(lambda unit: unit.cu_offset < limit, dwarf.iter_CUs()):
        yield from _names_in(_transient(unit), tags)
    for type_unit in takewhile(lambda unit: unit.tu_offset < limit, dwarf.iter_TUs()):
        yield from _names_in(type_unit, tags)


def _names_in(unit: CompileUnit | TypeUnit, tags: frozenset[str]) -> Iterator[tuple[str, str]]:
    for die in entries(unit, tags):
        around = parent_of(die)
        if (around is None or around.tag in NAMESPACES) and not is_declaration(die):
            name, path = name_of(die), qualified_name(die)
            if name is not None:
                yield name, f"{kind_of(die)} {path}".strip()


def _transient(unit: CompileUnit) -> CompileUnit:
    """Return the unit again with a cache of its own: its parsed entries live no longer than they are used."""
    return CompileUnit(unit.header, unit.dwarfinfo, unit.structs, unit.cu_offset, unit.cu_die_offset)
