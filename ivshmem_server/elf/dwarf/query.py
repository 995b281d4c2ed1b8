"""A query: the name of a type or variable, with its scope and place where given."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.entries import KINDS, children, name_of
from ivshmem_server.elf.dwarf.scope import name_in_source, scope_of, source_of, without_spaces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from elftools.dwarf.die import DIE

    from ivshmem_server.elf.dwarf.debug_info import DebugFile

_VARIABLES = frozenset({"DW_TAG_variable"})
_TAGS = {kind: frozenset(tag for tag in KINDS if KINDS[tag] == kind) for kind in set(KINDS.values())}
# A Rust enum with data is a structure with variants.
_TAGS["enum"] |= {"DW_TAG_structure_type"}
_SYNTAX = re.compile(r"(?:(struct|union|class|enum|typedef)\s+)?(::)?([^@]+?)(?:@(.+))?")
_PLACE = re.compile(r"(?:(?P<file>.*?):)?(?:(?P<line>[0-9]+)|(?P<offset>0x[0-9a-fA-F]+))")
_WANTED = ("type: give `struct NAME`, `union NAME` or a typedef", "variable: give `NAME` or `SCOPE::NAME`")


@dataclass(frozen=True)
class Query:
    """What a user looks for. `kind` ("struct", "typedef"...) is None for any, `file` and the others too.

    `path` is the name with as much of its scope as the user gave, all of it if it is `rooted`. `file` is the
    end of the path of a source file, or of the file that holds the DWARF where `offset` says which entry.
    """

    path: str
    kind: str | None = None
    rooted: bool = False
    file: str | None = None
    line: int | None = None
    offset: int | None = None
    is_variable: bool = False
    # Whether it is the name of a template or generic type, of which any instance is looked for.
    is_generic: bool = False

    @classmethod
    def parse(cls, text: str, *, is_variable: bool = False) -> Query:
        """Read what names a type: `struct ring`, `ns::ring`, `::ring`, `Option<u32>`, with a place or not.

        The place is behind an @: `main.c`, `ring.h:12`, or the offset of the entry in the DWARF, `0x1a2b`.
        Raises ElfViewError for anything else.
        """
        # DWARF's names are UTF-8, whatever encoding the command line was taken to be in.
        text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        match = _SYNTAX.fullmatch(text.strip())
        if match is None or match[3].endswith("::") or (is_variable and match[1]):
            raise ElfViewError(f"{text!r} is not the name of a {_WANTED[is_variable]}")
        found = cls(match[3], match[1], match[2] is not None, is_variable=is_variable)
        place = _PLACE.fullmatch(match[4] or "")
        if place is None:
            return replace(found, file=match[4])
        line, offset = place["line"], place["offset"]
        return replace(
            found,
            file=place["file"] or None,
            line=None if line is None else int(line),
            offset=None if offset is None else int(offset, 16),
        )

    def __str__(self) -> str:
        kind = "variable" if self.is_variable else self.kind or ""
        line = "" if self.line is None else str(self.line)
        place = ":".join(filter(None, (self.file, line if self.offset is None else f"{self.offset:#x}")))
        path = f"::{self.path}" if self.rooted else self.path
        return f"{kind} {path}{'@' if place else ''}{place}".strip()

    @property
    def tags(self) -> frozenset[str]:
        """The tags of the entries that may answer."""
        if self.is_variable:
            return _VARIABLES
        return frozenset(KINDS) if self.kind is None else _TAGS[self.kind]

    @property
    def names(self) -> list[str]:
        """What the entry's own name may be: Rust has names with a `::` in them (`dyn core::fmt::Debug`)."""
        starts = [0, *(start + 2 for start in _separators(self.path))]
        return [self.path[start:] for start in starts]

    @property
    def beginnings(self) -> list[str]:
        """What the entry's own name begins with, up to the `<` if it is that of a generic type's instance."""
        return [name.partition("<")[0] for name in self.names] if self.is_generic else self.names

    def is_named(self, die: DIE) -> bool:
        """Return whether the entry has the name and the scope, wherever it is defined."""
        if die.tag not in self.tags:
            return False
        name = name_in_source(die) or ""
        for wanted in self.names:
            if name == wanted or (self.is_generic and _is_instance(name, wanted)):
                scope = self.path[: len(self.path) - len(wanted)].removesuffix("::")
                is_anywhere = not scope and not self.rooted
                return self._is_of_kind(die) and (
                    is_anywhere or scope_of(die).is_called(scope, rooted=self.rooted)
                )
        return False

    def _is_of_kind(self, die: DIE) -> bool:
        if self.kind != "enum" or die.tag == "DW_TAG_enumeration_type":
            return True
        return any(child.tag == "DW_TAG_variant_part" for child in children(die))

    @property
    def has_place(self) -> bool:
        """Whether it says where the definition is."""
        return (self.file, self.line, self.offset) != (None, None, None)

    def selects(self, die: DIE, holder: DebugFile, *, by_unit: bool) -> bool:
        """Return whether an entry of this name is at the place that was given, if one was.

        `holder` is the file that holds the entry. `by_unit`: a file without a line is the one that was
        compiled, rather than the one that has the definition.
        """
        if self.offset is not None:
            return die.offset + holder.base == self.offset and self._is_file(str(holder.path))
        if self.line is None and by_unit:
            return self.is_in(die.cu.get_top_DIE())
        if self.line is None and self.file is None:
            return True
        path, line = source_of(die) or ("", 0)
        return self._is_file(path) and self.line in (None, line)

    def is_in(self, top: DIE) -> bool:
        """Return whether the unit with this first entry is of the file, by the end of its source's path."""
        return self._is_file(name_of(top) or "")

    def _is_file(self, path: str) -> bool:
        return self.file is None or f"/{path}".endswith(f"/{self.file}")


def selected(query: Query, found: Iterable[tuple[DIE, DebugFile]]) -> list[DIE]:
    """Return which of these entries of the query's name, each with the file that holds it, are meant."""
    known = [(die, holder) for die, holder in found if query.is_named(die)]
    by_unit = [die for die, holder in known if query.selects(die, holder, by_unit=True)]
    return by_unit or [die for die, holder in known if query.selects(die, holder, by_unit=False)]


def _is_instance(name: str, wanted: str) -> bool:
    """Return whether this is an instance of a generic type or template, one with these arguments if any."""
    generic, with_arguments, _ = wanted.partition("<")
    if with_arguments:
        # `box<int,2>` will do for `box<int, 2>`.
        return without_spaces(name) == without_spaces(wanted)
    return name.startswith(f"{generic}<")


def _separators(path: str) -> list[int]:
    """Return where a `::` stands outside of all brackets."""
    depth, found = 0, []
    for position, character in enumerate(path):
        if character in "<([{":
            depth += 1
        elif character in ">)]}" and path[position - 1 : position] != "-":
            depth -= 1
        elif path.startswith("::", position) and not depth:
            found.append(position)
    return found
