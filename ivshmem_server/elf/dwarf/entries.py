"""Single DWARF entries: their attributes, and what these mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ivshmem_server.elf.ctypes.model import ElfViewError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE

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
_DW_LANG_RUST = 0x1C


def name_of(die: DIE) -> str | None:
    """Return the name of an entry, None if it has none."""
    attribute = die.attributes.get("DW_AT_name")
    return None if attribute is None else attribute.value.decode("utf-8", "replace")


def kind_of(die: DIE) -> str:
    """Return the word that the language puts before a type's name: `struct` in C and C++, none in Rust."""
    return "" if is_rust(die) else KINDS.get(str(die.tag), "")


def is_rust(die: DIE) -> bool:
    """Return whether the entry was compiled from Rust, which writes types in its own way."""
    language = die.cu.get_top_DIE().attributes.get("DW_AT_language")
    return language is not None and language.value == _DW_LANG_RUST


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
