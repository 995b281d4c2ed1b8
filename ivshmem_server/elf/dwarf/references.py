"""References between entries, and the names of types as C, C++ or Rust writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivshmem_server.elf.ctypes.model import ElfViewError, dimension, within_brackets
from ivshmem_server.elf.dwarf.debug_info import follow
from ivshmem_server.elf.dwarf.entries import (
    POINTERS,
    QUALIFIERS,
    children,
    element_count,
    is_rust,
    kind_of,
    name_of,
)
from ivshmem_server.elf.dwarf.scope import qualified_name

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE

# Longer chains of "pointer to pointer to ..." are damage.
_MAX_NAME_DEPTH = 32


class References:
    """Follows the references from one entry to another within one ELF."""

    def target(self, die: DIE) -> DIE | None:
        """Return the entry that DW_AT_type refers to; None, meaning void, if there is no such attribute."""
        if "DW_AT_type" not in die.attributes:
            return None
        found = follow(die, "DW_AT_type")
        # It may stand in for the one in a type unit.
        return follow(found, "DW_AT_signature") if "DW_AT_signature" in found.attributes else found

    def c_name(self, die: DIE | None, depth: int = 0) -> str:
        """Return the name of a type as C writes it (`const char *`), without building what it points at."""
        if die is None:
            return "void"
        tag = str(die.tag)
        name = name_of(die)
        if tag in POINTERS and name is not None and is_rust(die):
            return name  # such as `&u32` and `*const u8`
        if tag in QUALIFIERS or tag in POINTERS or tag == "DW_TAG_subroutine_type":
            if depth > _MAX_NAME_DEPTH:
                raise ElfViewError("the debug information is damaged: a type refers to itself")
            return _derived_name(tag, self.c_name(self.target(die), depth + 1))
        if tag == "DW_TAG_array_type":
            counts = [element_count(child) for child in children(die) if child.tag == "DW_TAG_subrange_type"]
            return self.c_name(self.target(die), depth + 1) + "".join(map(dimension, counts))
        word = "" if tag == "DW_TAG_typedef" else kind_of(die)
        return f"{word} {qualified_name(die) or '{...}'}".strip()


def _derived_name(tag: str, inner: str) -> str:
    if tag == "DW_TAG_subroutine_type":
        return f"{inner} ()"
    if tag in QUALIFIERS:
        return _qualified_name(QUALIFIERS[tag], inner)
    mark = POINTERS[tag]
    if in_brackets := within_brackets(inner, mark):
        return in_brackets
    if inner.endswith(" ()"):
        return f"{inner[:-3]} ({mark})()"
    if inner.endswith("]"):
        base, bracket, rest = inner.partition("[")
        return f"{base} ({mark}){bracket}{rest}"
    return f"{inner}{mark}" if inner.endswith("*") else f"{inner} {mark}"


def _qualified_name(qualifier: str, inner: str) -> str:
    if in_brackets := within_brackets(inner, qualifier):
        return in_brackets
    if inner.endswith("*"):
        return f"{inner}{qualifier}"
    if inner.startswith("const "):
        return f"const {qualifier} {inner.removeprefix('const ')}"
    return f"{qualifier} {inner}"
