"""Single DWARF entries: their attributes, what they refer to, and the C name of the type they define."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivshmem_server.elf_model import ElfViewError, dimension, within_brackets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo

# Entries that define a type with a name, and the word that C puts before it.
KINDS = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_union_type": "union",
    "DW_TAG_class_type": "class",
    "DW_TAG_enumeration_type": "enum",
    "DW_TAG_typedef": "typedef",
    "DW_TAG_base_type": "",
}
QUALIFIERS = {
    "DW_TAG_const_type": "const",
    "DW_TAG_volatile_type": "volatile",
    "DW_TAG_restrict_type": "restrict",
    "DW_TAG_atomic_type": "_Atomic",
}
POINTERS = {
    "DW_TAG_pointer_type": "*",
    "DW_TAG_reference_type": "&",
    "DW_TAG_rvalue_reference_type": "&&",
    "DW_TAG_ptr_to_member_type": "::*",
}
_DW_OP_PLUS_UCONST = 0x23
# Longer chains of "pointer to pointer to ..." are damage.
_MAX_NAME_DEPTH = 32


def name_of(die: DIE) -> str | None:
    """Return the name of an entry, None if it has none."""
    attribute = die.attributes.get("DW_AT_name")
    return None if attribute is None else attribute.value.decode("utf-8", "replace")


def unit_name(die: DIE) -> str:
    """Return the source file whose compilation the entry comes from, as it was given to the compiler."""
    return name_of(die.cu.get_top_DIE()) or "?"


def number_of(die: DIE, attribute: str, default: int = 0) -> int:
    """Return the value of an attribute, `default` if the entry has none.

    Raises ElfViewError if it is computed at run time, by an expression or from another variable.
    """
    found = die.attributes.get(attribute)
    if found is None:
        return default
    if not isinstance(found.value, int) or found.form.startswith("DW_FORM_ref"):
        raise ElfViewError(f"{attribute} of {name_of(die)} is known only at run time")
    return found.value


def is_declaration(die: DIE) -> bool:
    """Return whether the entry says only that the type exists (`struct a;`)."""
    return "DW_AT_declaration" in die.attributes


def is_data_member(die: DIE) -> bool:
    """Return whether the entry is part of each object: no static member or function, but a C++ base class."""
    if die.tag == "DW_TAG_inheritance":
        return True
    return die.tag == "DW_TAG_member" and "DW_AT_external" not in die.attributes


def children(die: DIE) -> Iterator[DIE]:
    """Yield the entries below this one. Raises ElfViewError where a damaged file leads in a circle."""
    position = die.offset
    for child in die.iter_children():
        if child.offset <= position:
            raise ElfViewError("the debug information is damaged: its entries run in a circle")
        position = child.offset
        yield child


def member_location(die: DIE) -> int:
    """Return the offset of a member, in bytes. Before DWARF 3 it is an expression: "add this constant"."""
    attribute = die.attributes.get("DW_AT_data_member_location")
    value = 0 if attribute is None else attribute.value
    if isinstance(value, int):
        return value
    operation, *operand = value
    if operation != _DW_OP_PLUS_UCONST:
        what = name_of(die) or ("a virtual base class" if die.tag == "DW_TAG_inheritance" else "a member")
        raise ElfViewError(f"the place of {what} is known only at run time")
    # ULEB128: 7 bits a byte, the least significant first.
    return sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(operand))


def element_count(subrange: DIE) -> int | None:
    """Return the number of elements in one dimension of an array, None if the definition leaves it open."""
    if "DW_AT_count" in subrange.attributes:
        return max(number_of(subrange, "DW_AT_count"), 0)
    if "DW_AT_upper_bound" not in subrange.attributes:
        return None
    upper = number_of(subrange, "DW_AT_upper_bound")
    # A bound of -1 is written as the largest number of 4 or 8 bytes by some.
    return 0 if upper in (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF) else max(upper + 1, 0)


class References:
    """Follows the references from one entry to another within one ELF."""

    def __init__(self, dwarf: DWARFInfo) -> None:
        self._dwarf = dwarf
        self._type_units: dict[int, DIE] | None = None

    def target(self, die: DIE) -> DIE | None:
        """Return the entry that DW_AT_type refers to; None, meaning void, if there is no such attribute."""
        if "DW_AT_type" not in die.attributes:
            return None
        found = self._follow(die, "DW_AT_type")
        # It may stand in for the one in a type unit.
        return self._follow(found, "DW_AT_signature") if "DW_AT_signature" in found.attributes else found

    def _follow(self, die: DIE, attribute: str) -> DIE:
        reference = die.attributes[attribute]
        if reference.form != "DW_FORM_ref_sig8":
            return die.get_DIE_from_attribute(attribute)
        if self._type_units is None:
            self._type_units = dict(_type_units(self._dwarf))
        if reference.raw_value in self._type_units:
            return self._type_units[reference.raw_value]
        return self._dwarf.get_DIE_by_sig8(reference.raw_value)

    def c_name(self, die: DIE | None, depth: int = 0) -> str:
        """Return the name of a type as C writes it (`const char *`), without building what it points at."""
        if die is None:
            return "void"
        tag, name = str(die.tag), name_of(die)
        if tag in QUALIFIERS or tag in POINTERS or tag == "DW_TAG_subroutine_type":
            if depth > _MAX_NAME_DEPTH:
                raise ElfViewError("the debug information is damaged: a type refers to itself")
            return _derived_name(tag, self.c_name(self.target(die), depth + 1))
        if tag == "DW_TAG_array_type":
            counts = [element_count(child) for child in children(die) if child.tag == "DW_TAG_subrange_type"]
            return self.c_name(self.target(die), depth + 1) + "".join(map(dimension, counts))
        word = "" if tag == "DW_TAG_typedef" else KINDS.get(tag, "")
        return f"{word} {name or '{...}'}".strip()


def _type_units(dwarf: DWARFInfo) -> Iterator[tuple[int, DIE]]:
    """Yield the signatures and types of DWARF 5's type units, which pyelftools leaves among the others."""
    for unit in dwarf.iter_CUs():
        if unit.header.get("unit_type") == "DW_UT_type":
            yield unit["type_signature"], unit.get_DIE_from_refaddr(unit.cu_offset + unit["type_offset"])


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
