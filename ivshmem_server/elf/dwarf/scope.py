"""The scope of an entry (namespaces, modules, classes), its file and its line."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.debug_info import follow
from ivshmem_server.elf.dwarf.entries import name_of
from ivshmem_server.elf.dwarf.outline import outline_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE

NAMESPACES = frozenset({"DW_TAG_namespace", "DW_TAG_module"})
RECORDS = frozenset(
    {"DW_TAG_structure_type", "DW_TAG_class_type", "DW_TAG_union_type", "DW_TAG_interface_type"}
)
# Members of an enum with data are those of a class in Rust, and methods make scopes of their own.
_NAMED = NAMESPACES | RECORDS | {"DW_TAG_enumeration_type", "DW_TAG_subprogram"}
_ORIGINS = ("DW_AT_specification", "DW_AT_abstract_origin")
# Deeper ones, or longer chains from one entry to the one that it completes, are damage.
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Scope:
    """The names of the entries around one, from the outermost to the innermost."""

    parts: tuple[tuple[str, bool, bool], ...] = ()

    @property
    def full(self) -> str:
        """All of it: `ns::v1::f`."""
        return self._joined(lambda _function, _inline: True)

    @property
    def shown(self) -> str:
        """What is written before a type's name: without functions, which no language writes there."""
        return self._joined(lambda function, _inline: not function)

    def is_called(self, name: str, *, rooted: bool) -> bool:
        """Return whether a user may mean this scope: all of it if `rooted`, else the end of it will do.

        Inline and anonymous namespaces may be left out as in C++, and functions unless `rooted`.
        """
        wanted = without_spaces(name)
        no_inline = self._joined(lambda _function, inline: not inline)
        if rooted:
            return wanted in map(without_spaces, (self.full, no_inline))
        outermost = self._joined(lambda function, inline: not (function or inline))
        scopes = map(without_spaces, (self.full, self.shown, no_inline, outermost))
        return any(f"::{scope}".endswith(f"::{wanted}") for scope in scopes)

    def _joined(self, wanted: Callable[[bool, bool], bool]) -> str:
        return "::".join(name for name, function, inline in self.parts if wanted(function, inline))


def without_spaces(name: str) -> str:
    """Return a name by which those are equal that compilers and people write with other spaces."""
    return name.replace(" ", "")


def scope_of(die: DIE) -> Scope:
    """Return the scope that the entry is in. Raises ElfViewError if the ELF is damaged."""
    parts: list[tuple[str, bool, bool]] = []
    parent = parent_of(origin_of(die))
    for _ in range(_MAX_DEPTH):
        if parent is None:
            return Scope(tuple(reversed(parts)))
        # A method is defined elsewhere than it is declared, and the scope is where it is declared.
        parent = origin_of(parent)
        if parent.tag in _NAMED:
            parts.append(_part(parent))
        parent = parent_of(parent)
    raise ElfViewError("the debug information is damaged: its entries are nested without end")


def qualified_name(die: DIE) -> str | None:
    """Return the name of a type with its scope, as C++ and Rust write it; None if it has no name.

    A typedef of a class is called by its name alone, as that of its class may be a line long.
    """
    name = name_of(die)
    if name is None:
        return None
    parent = parent_of(die)
    if die.tag == "DW_TAG_typedef" and parent is not None and parent.tag in RECORDS:
        return name
    scope = scope_of(die).shown
    return f"{scope}::{name}" if scope else name


def parent_of(die: DIE) -> DIE | None:
    """Return the scope around this entry, None if that is the unit. Raises ElfViewError if it is damaged."""
    around = outline_of(die.cu).around(die.offset)
    return None if around is None else die.cu.get_DIE_from_refaddr(around)


def origin_of(die: DIE) -> DIE:
    """Return the entry that this one completes, which says what this one does not; itself if there is none.

    A variable that is declared and defined has an entry for each, and so has a method.
    """
    for _ in range(_MAX_DEPTH):
        attribute = next((name for name in _ORIGINS if name in die.attributes), None)
        if attribute is None:
            return die
        die = die.get_DIE_from_attribute(attribute)
    raise ElfViewError("the debug information is damaged: an entry completes itself")


def name_in_source(die: DIE) -> str | None:
    """Return the name of a type or variable, None if it has none."""
    return name_of(die) or name_of(origin_of(die))


def _part(die: DIE) -> tuple[str, bool, bool]:
    """Return a scope's name, whether it is a function, and whether one may leave out the name."""
    name = name_of(die)
    if name is None and "DW_AT_signature" in die.attributes:
        # It stands in for the one in another type unit.
        name = name_of(follow(die, "DW_AT_signature"))
    inline = die.tag in NAMESPACES and (name is None or "DW_AT_export_symbols" in die.attributes)
    anonymous = "(anonymous namespace)" if die.tag in NAMESPACES else "{...}"
    return name or anonymous, die.tag == "DW_TAG_subprogram", inline


def source_of(die: DIE) -> tuple[str, int] | None:
    """Return path and line of the definition in the source, None if the debug information does not say."""
    line, file = die.attributes.get("DW_AT_decl_line"), die.attributes.get("DW_AT_decl_file")
    if line is None or file is None:
        return None
    try:
        path = _file_path(die, file.value)
    except Exception:  # whatever is wrong with the table of lines, types do not need it
        return None
    return None if path is None else (path, line.value)


def _file_path(die: DIE, number: int) -> str | None:
    program = die.dwarfinfo.line_program_for_CU(cast("CompileUnit", die.cu))
    if program is None:
        return None
    # Before DWARF 5, files and directories are counted from 1, and directory 0 is that of the compilation.
    first = 0 if program.header.version >= 5 else 1
    entry = program.header["file_entry"][number - first]
    directories = program.header["include_directory"]
    known = entry.dir_index >= first
    directory = directories[entry.dir_index - first] if known else b""
    return posixpath.join(directory.decode("utf-8", "replace"), entry.name.decode("utf-8", "replace"))
