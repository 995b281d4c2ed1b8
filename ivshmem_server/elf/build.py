"""From DWARF entries to C types (DWARF 5, chapter 5, and its forms in DWARF 2 to 4)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, cast

from ivshmem_server.elf.ctypes.model import (
    Alias,
    Array,
    CType,
    ElfViewError,
    Encoding,
    Enum,
    Member,
    Opaque,
    Pointer,
    Record,
    Scalar,
    Variant,
    Variants,
    array_of,
    is_impossible,
)
from ivshmem_server.elf.ctypes.variants import Discriminants, wrap
from ivshmem_server.elf.dwarf.entries import (
    KINDS,
    POINTERS,
    QUALIFIERS,
    children,
    element_count,
    is_data_member,
    is_declaration,
    member_location,
    name_of,
    number_of,
)
from ivshmem_server.elf.dwarf.references import References
from ivshmem_server.elf.dwarf.scope import origin_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from elftools.dwarf.die import DIE

# DW_ATE_* (DWARF 5, section 7.8), by number.
_BOOLEAN, _FLOAT, _SIGNED, _SIGNED_CHAR, _UNSIGNED, _UNSIGNED_CHAR, _UTF = 2, 4, 5, 6, 7, 8, 16
_ENCODINGS = {
    _BOOLEAN: Encoding.BOOL,
    _FLOAT: Encoding.FLOAT,
    _SIGNED: Encoding.SIGNED,
    _SIGNED_CHAR: Encoding.SIGNED,
    _UNSIGNED: Encoding.UNSIGNED,
    _UNSIGNED_CHAR: Encoding.UNSIGNED,
    _UTF: Encoding.UNSIGNED,
}
_CHARS = {_SIGNED_CHAR: Encoding.SIGNED_CHAR, _UNSIGNED_CHAR: Encoding.UNSIGNED_CHAR}
_FLOAT_SIZES = (2, 4, 8)
_DW_END_BIG = 1
_NULL_POINTERS = ("decltype(nullptr)", "nullptr_t", "std::nullptr_t")
# The kernel's names for words of a fixed byte order. The order is in the name alone, not in the DWARF.
_KERNEL_ORDER = re.compile(r"__(le|be)(?:16|32|64)")


class TypeBuilder:
    """Builds C types from the entries of one ELF, each entry once."""

    def __init__(self, *, little_endian: bool, defined: Callable[[DIE], CType | None]) -> None:
        """Take what finds the definition, in any file, of a type that an entry only declares."""
        self._references = References()
        self._defined = defined
        self._big_endian = not little_endian
        self._built: dict[tuple[int, int], CType] = {}
        self._in_progress: set[tuple[int, int]] = set()

    def build(self, die: DIE) -> CType:
        """Return the type that the entry defines.

        That of a variable is the variable's type. Raises ElfViewError if it is none that memory can hold,
        such as a function.
        """
        # The stream tells .debug_info from .debug_types and from a shared debug file.
        key = (id(die.stream), die.offset)
        if key in self._in_progress:
            raise ElfViewError(f"the debug information is damaged: {name_of(die)} contains itself")
        if key not in self._built:
            self._in_progress.add(key)
            try:
                self._built[key] = self._build(die)
            finally:
                self._in_progress.discard(key)
        return self._built[key]

    def _build(self, die: DIE) -> CType:
        builder = _BUILDERS.get(str(die.tag))
        if builder is None:
            raise ElfViewError(f"{self._name(die)} is not a type that memory can hold")
        return builder(self, die)

    def _name(self, die: DIE) -> str:
        return self._references.c_name(die)

    def _size(self, die: DIE, default: int = 0, *, least: int = 1) -> int:
        size = number_of(die, "DW_AT_byte_size", default)
        if size < least:
            raise ElfViewError(f"the debug information is damaged: {self._name(die)} has a size of {size}")
        return size

    def _target(self, die: DIE) -> CType:
        target = self._references.target(die)
        if target is None:
            raise ElfViewError(f"{self._name(die)} is void: no memory holds one")
        return self.build(target)

    def _base(self, die: DIE) -> CType:
        name, size = self._name(die), self._size(die, least=0)
        if not size:
            # Rust's () and !, of which nothing is stored; of ! there is no value either.
            never = (Member(None, Variants(name, 0, None, ()), 0),) if name == "!" else ()
            return Record(name, 0, "struct", name, never)
        number = number_of(die, "DW_AT_encoding")
        encoding = _ENCODINGS.get(number, Encoding.RAW)
        if name == "char":
            encoding = _CHARS.get(number, encoding)
        # bfloat16 has the size of a half-precision number, and DWARF gives both the same encoding.
        if encoding is Encoding.FLOAT and (size not in _FLOAT_SIZES or "bf16" in name):
            encoding = Encoding.RAW
        # gcc's scalar_storage_order makes single members differ from the ELF's order.
        order = number_of(die, "DW_AT_endianity")
        return Scalar(name, size, encoding, order == _DW_END_BIG if order else self._big_endian)

    def _variable(self, die: DIE) -> CType:
        # What an array is declared without, the number of its elements, its definition says.
        return self._target(die if "DW_AT_type" in die.attributes else origin_of(die))

    def _unspecified(self, die: DIE) -> CType:
        # C++'s nullptr_t takes the room of a pointer.
        if name_of(die) not in _NULL_POINTERS:
            raise ElfViewError(f"nothing is known of {self._name(die)} but its name")
        return Pointer(self._name(die), self._size(die, die.cu["address_size"]), self._big_endian)

    def _pointer_to_member(self, die: DIE) -> CType:
        target = self._references.target(die)
        if target is None or target.tag != "DW_TAG_subroutine_type":
            return self._pointer(die)
        # To a function: its address or place in the table of virtual ones, and what to add to `this`.
        size = self._size(die, 2 * die.cu["address_size"])
        return Scalar(self._name(die), size, Encoding.RAW, self._big_endian)

    def _pointer(self, die: DIE) -> CType:
        return Pointer(self._name(die), self._size(die, die.cu["address_size"]), self._big_endian)

    def _typedef(self, die: DIE) -> CType:
        name, target = self._name(die), self._target(die)
        order = _KERNEL_ORDER.fullmatch(name)
        if order:
            target = _in_order(target, big_endian=order[1] == "be")
        return Alias(name, target.size, target)

    def _qualified(self, die: DIE) -> CType:
        target = self._target(die)
        # Where an array is const, so are its elements: compilers say it of both.
        return target if isinstance(target, Array) else Alias(self._name(die), target.size, target)

    def _enumeration(self, die: DIE) -> CType:
        size = self._size(die) if "DW_AT_byte_size" in die.attributes else self._target(die).size
        entries = [child for child in children(die) if child.tag == "DW_TAG_enumerator"]
        values = [number_of(entry, "DW_AT_const_value") for entry in entries]
        signed = number_of(die, "DW_AT_encoding") == _SIGNED or min(values, default=0) < 0
        names = tuple(
            (name_of(entry) or "", wrap(value, 8 * size, signed=signed))
            for entry, value in zip(entries, values, strict=True)
        )
        return Enum(self._name(die), size, signed, self._big_endian, names)

    def _array(self, die: DIE) -> CType:
        ctype = self._target(die)
        counts = [element_count(child) for child in children(die) if child.tag == "DW_TAG_subrange_type"]
        for count in reversed(counts or [None]):
            ctype = array_of(ctype, count)
        return ctype

    def _record(self, die: DIE) -> CType:
        if is_declaration(die):
            # Compilers of C++ leave out a definition that is sure to be in another unit.
            if (defined := self._defined(die)) is not None:
                return defined
            raise ElfViewError(
                f"{self._name(die)} is only declared here: "
                "give the linked program, or compile with -fstandalone-debug"
            )
        kind = cast("Literal['struct', 'union', 'class']", KINDS[str(die.tag)])
        name, size = self._name(die), self._size(die, least=0)
        members: list[Member] = []
        for child in children(die):
            if is_data_member(child):
                members.append(self._part(child, name, size))
            elif child.tag == "DW_TAG_variant_part":
                members += self._variant_part(child, name, size)
        return Record(name, size, kind, name_of(die), tuple(members))

    def _part(self, die: DIE, name: str, size: int) -> Member:
        """Return the member that the entry defines, or one that says why it cannot be shown.

        `name` and `size` are those of the record that it is in.
        """
        try:
            offset = member_location(die)
        except ElfViewError as error:
            return Member(name_of(die), Opaque(self._type_name(die), 0, str(error), located=False), 0)
        try:
            member = self._member(die, offset)
            _check_inside(member, name, size)
        except ElfViewError as error:
            return Member(name_of(die), Opaque(self._type_name(die), 0, str(error)), offset)
        return member

    def _type_name(self, die: DIE) -> str:
        return self._references.c_name(self._references.target(die))

    def _member(self, die: DIE, offset: int) -> Member:
        # A base class of a C++ class has no name: like an anonymous struct, its members are reached directly.
        name, ctype = name_of(die), self._target(die)
        bit_size = number_of(die, "DW_AT_bit_size")
        if not bit_size:
            return Member(name, ctype, offset)
        bit_offset = 8 * offset + self._bits_before(die, ctype, bit_size)
        return Member(name, ctype, bit_offset // 8, bit_offset, bit_size)

    def _variant_part(self, die: DIE, name: str, size: int) -> list[Member]:
        """Return the anonymous member that is what depends on the discriminant.

        Where nothing tells several variants from each other, they are members like those of a union.
        """
        entries = [child for child in children(die) if child.tag == "DW_TAG_variant"]
        members = [
            tuple(self._part(child, name, size) for child in children(entry) if is_data_member(child))
            for entry in entries
        ]
        if "DW_AT_discr" not in die.attributes:
            possible = [parts for parts in members if not any(is_impossible(part.type) for part in parts)]
            if len(possible) > 1:
                return [part for parts in possible for part in parts]
            variants = tuple(Variant(None, parts) for parts in possible)
            return [Member(None, Variants(name, size, None, variants), 0)]
        try:
            discriminant = self._part(die.get_DIE_from_attribute("DW_AT_discr"), name, size)
            values = map(Discriminants(discriminant.type).of_variant, entries)
            variants = tuple(map(Variant, values, members))
        except ElfViewError as error:
            return [Member(None, Opaque(f"variants of {name}", 0, str(error)), 0)]
        return [Member(None, Variants(name, size, discriminant, variants), 0)]

    def _bits_before(self, die: DIE, ctype: CType, bit_size: int) -> int:
        """Return the bits between the member's location and the first bit of a bit-field, in memory order.

        DW_AT_bit_offset, before DWARF 4, counts from the most significant bit of a storage unit.
        """
        if "DW_AT_bit_offset" not in die.attributes:
            return number_of(die, "DW_AT_data_bit_offset")
        from_top = wrap(number_of(die, "DW_AT_bit_offset"), 64, signed=True)
        if self._big_endian:
            return from_top
        return 8 * number_of(die, "DW_AT_byte_size", ctype.size) - from_top - bit_size


def _check_inside(member: Member, name: str, size: int) -> None:
    bits = 8 * member.type.size if member.bit_size is None else member.bit_size
    start = 8 * member.offset if member.bit_offset is None else member.bit_offset
    if start < 0 or start + bits > 8 * size:
        what = member.name or member.type.name
        raise ElfViewError(f"the debug information is damaged: {what} does not lie within {name}")


def _in_order(ctype: CType, *, big_endian: bool) -> CType:
    if isinstance(ctype, Alias):
        return Alias(ctype.name, ctype.size, _in_order(ctype.target, big_endian=big_endian))
    if isinstance(ctype, Scalar):
        return Scalar(ctype.name, ctype.size, ctype.encoding, big_endian)
    return ctype


_BUILDERS: dict[str, Callable[[TypeBuilder, DIE], CType]] = {
    "DW_TAG_base_type": TypeBuilder._base,
    "DW_TAG_enumeration_type": TypeBuilder._enumeration,
    "DW_TAG_array_type": TypeBuilder._array,
    "DW_TAG_structure_type": TypeBuilder._record,
    "DW_TAG_union_type": TypeBuilder._record,
    "DW_TAG_class_type": TypeBuilder._record,
    "DW_TAG_typedef": TypeBuilder._typedef,
    "DW_TAG_variable": TypeBuilder._variable,
    "DW_TAG_unspecified_type": TypeBuilder._unspecified,
    **dict.fromkeys(QUALIFIERS, TypeBuilder._qualified),
    **dict.fromkeys(POINTERS, TypeBuilder._pointer),
    "DW_TAG_ptr_to_member_type": TypeBuilder._pointer_to_member,
}
