"""Finding the entries that define a type of a given name, without parsing all of a large ELF's DWARF."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from elftools.dwarf.compileunit import CompileUnit

from ivshmem_server.elf_entries import KINDS, children, is_declaration, name_of
from ivshmem_server.elf_mentions import Mentions, content
from ivshmem_server.elf_model import ElfViewError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo

_TAGS = {kind: tag for tag, kind in KINDS.items()}
# What may hold further definitions of types.
_SCOPES = frozenset(
    {
        "DW_TAG_namespace",
        "DW_TAG_module",
        "DW_TAG_structure_type",
        "DW_TAG_union_type",
        "DW_TAG_class_type",
        "DW_TAG_subprogram",
        "DW_TAG_lexical_block",
    }
)


@dataclass(frozen=True)
class Query:
    """What a user looks for. `kind` ("struct", "typedef"...) and `unit` (a source file) are None for any."""

    name: str
    kind: str | None = None
    unit: str | None = None

    @classmethod
    def parse(cls, text: str) -> Query:
        """Read `struct ring`, `ring`, `ring_t`, `struct ring@main.c`. Raises ElfViewError otherwise."""
        match = re.fullmatch(r"(?:(struct|union|class|enum|typedef)\s+)?([^@]+?)(?:@(.+))?", text.strip())
        if match is None:
            raise ElfViewError(
                f"{text!r} is no name of a type: give `struct NAME`, `union NAME` or a typedef"
            )
        return cls(match[2], match[1], match[3])

    def __str__(self) -> str:
        at_unit = f"@{self.unit}" if self.unit else ""
        return f"{self.kind or ''} {self.name}{at_unit}".strip()

    @property
    def tags(self) -> frozenset[str]:
        """The tags of the entries that may answer."""
        return frozenset(KINDS if self.kind is None else [_TAGS[self.kind]])

    def is_in(self, top: DIE) -> bool:
        """Return whether the unit with this first entry is asked for, by the end of its source's path."""
        return self.unit is None or f"/{name_of(top)}".endswith(f"/{self.unit}")


def definitions(dwarf: DWARFInfo, query: Query, *, declared: bool = False) -> Iterator[DIE]:
    """Yield the entries that define what is asked for, or only declare it, in the order of the file.

    Units that cannot have one are passed over unparsed.
    """
    mentions = Mentions(dwarf, query.name)
    for unit in dwarf.iter_CUs():
        if mentions.defined_in(unit, query.tags, declared=declared):
            top = _transient(unit).get_top_DIE()
            found = _named(top, query, mentions) if query.is_in(top) else iter(())
            yield from (die for die in found if is_declaration(die) == declared)
    for type_unit in dwarf.iter_TUs():
        found = _named(type_unit.get_top_DIE(), query, None)
        yield from (die for die in found if is_declaration(die) == declared)


def split_file(dwarf: DWARFInfo) -> str | None:
    """Return the name of a .dwo file that holds types of this ELF (-gsplit-dwarf), None if there is none."""
    found = re.search(rb"[^\0]+\.dwo(?=\0)", content(dwarf.debug_str_sec))
    return found[0].decode("utf-8", "replace") if found else None


def all_names(dwarf: DWARFInfo, limit: int) -> Iterator[tuple[str, str]]:
    """Yield kind ("struct", "typedef") and name of the types defined in the first `limit` bytes of DWARF."""
    for unit in takewhile(lambda unit: unit.cu_offset < limit, dwarf.iter_CUs()):
        yield from _names_below(_transient(unit).get_top_DIE())
    for type_unit in takewhile(lambda unit: unit.tu_offset < limit, dwarf.iter_TUs()):
        yield from _names_below(type_unit.get_top_DIE())


def _names_below(top: DIE) -> Iterator[tuple[str, str]]:
    for die in children(top):
        name = name_of(die) if die.tag in KINDS else None
        if name is not None and not is_declaration(die):
            yield KINDS[str(die.tag)], name


def _transient(unit: CompileUnit) -> CompileUnit:
    """Return the unit again with a cache of its own: its parsed entries live no longer than they are used."""
    return CompileUnit(unit.header, unit.dwarfinfo, unit.structs, unit.cu_offset, unit.cu_die_offset)


def _named(parent: DIE, query: Query, mentions: Mentions | None) -> Iterator[DIE]:
    for die in children(parent):
        if die.tag in query.tags and name_of(die) == query.name:
            yield die
        if die.tag in _SCOPES and die.has_children and (mentions is None or mentions.within(*_extent(die))):
            yield from _named(die, query, mentions)


def _extent(die: DIE) -> tuple[int, int]:
    """Return where the entries below this one begin and end; the unit's end where no end is stated."""
    sibling = die.attributes.get("DW_AT_sibling")
    if sibling is None or sibling.form == "DW_FORM_ref_addr":
        return die.offset + die.size, die.cu.cu_offset + die.cu.size
    return die.offset + die.size, die.cu.cu_offset + int(sibling.value)
