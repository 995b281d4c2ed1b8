"""C types as DWARF states them for a piece of memory, as small immutable objects."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Literal

# Where a name goes in `int (*)()`, `char *(**)(int)` and `long (*const)[4]`.
_BRACKETS = re.compile(r"\(([:*&][^()]*)\)(?=[(\[])")


class ElfViewError(ValueError):
    """The ELF, the type or the memory cannot be used. The text is one line: the cause and the remedy."""


class Encoding(enum.Enum):
    """How the bytes of a base type are read (DWARF 5, section 5.1.1)."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    BOOL = "bool"
    # Plain `char` only: `signed char` and `unsigned char` are small integers (int8_t, uint8_t).
    SIGNED_CHAR = "signed char"
    UNSIGNED_CHAR = "unsigned char"
    FLOAT = "float"
    # Nothing Python has a number for (long double, complex, decimal): shown as bytes.
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class CType:
    """A C type: its name as C writes it, and what sizeof gives, in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Scalar(CType):
    """A base type: integer, floating point number, bool or char."""

    encoding: Encoding
    big_endian: bool


@dataclass(frozen=True, slots=True)
class Enum(CType):
    """An enumeration. `names` holds the enumerators in the order of the definition."""

    signed: bool
    big_endian: bool
    names: tuple[tuple[str, int], ...]

    def name_of(self, value: int) -> str | None:
        """Return the first enumerator with this value, None if there is none."""
        return next((name for name, number in self.names if number == value), None)


@dataclass(frozen=True, slots=True)
class Pointer(CType):
    """A pointer, to data or to a function. What it points at is known by name only."""

    big_endian: bool


@dataclass(frozen=True, slots=True)
class Opaque(CType):
    """What cannot be shown, and why not. Its size is 0 where that is not known either.

    `located` says whether it has a place in the object around it that is known.
    """

    reason: str
    located: bool = True


@dataclass(frozen=True, slots=True)
class Array(CType):
    """An array. A flexible one (`T name[]`) has no count and size 0; more dimensions are arrays of arrays."""

    element: CType
    count: int | None


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a struct, union or class.

    `name` is None for an anonymous struct or union (and for a C++ base class), whose members C reaches
    as members of the one around it. `offset` is offsetof, in bytes.

    A bit-field has a `bit_size`, and its `bit_offset` counts the bits from the beginning of the struct to
    the first bit of the field in the order of memory: from the least significant bit of the first byte
    where the field is little-endian, from the most significant one where it is big-endian
    (DWARF 5, section 5.7.6). Its `offset` is the byte that holds this first bit.
    """

    name: str | None
    type: CType
    offset: int
    bit_offset: int | None = None
    bit_size: int | None = None


@dataclass(frozen=True, slots=True)
class Record(CType):
    """A struct, union or class, its members in the order of the definition. `tag` is None if it has none."""

    kind: Literal["struct", "union", "class"]
    tag: str | None
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        """Return the member of this name, anonymous structs and unions included, at its offset from here.

        Raises KeyError if there is none.
        """
        for member in flatten(self):
            if member.name == name:
                return member
        raise KeyError(f"{self.name} has no member {name}")


@dataclass(frozen=True, slots=True)
class Variant:
    """The members that a record has if its discriminant lies in one of these ranges, both ends included.

    `values` is None where it is for every discriminant that no other variant is for.
    """

    values: tuple[tuple[int, int], ...] | None
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Variants(CType):
    """What of a record depends on a discriminant (DWARF 5, section 5.7.10): the body of a Rust enum.

    It is an anonymous member of that record, at offset 0 and with its size. There is no discriminant where
    there is no more than one variant.
    """

    discriminant: Member | None
    variants: tuple[Variant, ...]

    def active(self, discriminant: int | None) -> Variant | None:
        """Return the variant that a record with this discriminant has, None if there is none for it."""
        default = None
        for variant in self.variants:
            if variant.values is None:
                default = variant
            elif discriminant is not None and any(
                low <= discriminant <= high for low, high in variant.values
            ):
                return variant
        return default


@dataclass(frozen=True, slots=True)
class Alias(CType):
    """Another name for `target`: a typedef, or the type with const, volatile or _Atomic before it."""

    target: CType


def strip(ctype: CType) -> CType:
    """Return the type behind all typedefs and qualifiers."""
    while isinstance(ctype, Alias):
        ctype = ctype.target
    return ctype


def flatten(record: Record, base: int = 0) -> tuple[Member, ...]:
    """Return the named members, with those of anonymous structs and unions, at offsets from `base` on."""
    found: list[Member] = []
    for member in record.members:
        inner = strip(member.type)
        if member.name is None and isinstance(inner, Record):
            found += flatten(inner, base + member.offset)
        else:
            found.append(_moved(member, base))
    return tuple(found)


def is_impossible(ctype: CType) -> bool:
    """Return whether there is no value of this type: a Rust enum without variants, and what contains one."""
    match strip(ctype):
        case Variants(variants=()):
            return True
        case Record(kind="struct", members=members):
            return any(is_impossible(member.type) for member in members)
        case _:
            return False


def _moved(member: Member, base: int) -> Member:
    bit_offset = None if member.bit_offset is None else member.bit_offset + 8 * base
    return Member(member.name, member.type, member.offset + base, bit_offset, member.bit_size)


def layout(ctype: CType) -> tuple[object, ...]:
    """Return what decides how memory is read: equal for types that differ in the names of types only."""
    match strip(ctype):
        case Scalar() as scalar:
            return ("scalar", scalar.size, scalar.encoding, scalar.big_endian)
        case Enum() as enumeration:
            return ("enum", enumeration.size, enumeration.signed, enumeration.big_endian, enumeration.names)
        case Array() as array:
            return ("array", array.count, layout(array.element))
        case Record() as record:
            return (record.kind, record.size, *map(_member_layout, record.members))
        case other:
            return _other_layout(other)


def _other_layout(ctype: CType) -> tuple[object, ...]:
    match ctype:
        case Variants(discriminant=discriminant, variants=variants):
            found = [(variant.values, *map(_member_layout, variant.members)) for variant in variants]
            return ("variants", discriminant and _member_layout(discriminant), *found)
        case Opaque(name=name):
            return ("opaque", name)
        case other:
            return ("pointer", other.size, getattr(other, "big_endian", False))


def _member_layout(member: Member) -> tuple[object, ...]:
    return (member.name, member.offset, member.bit_offset, member.bit_size, layout(member.type))


def array_of(element: CType, count: int | None) -> Array:
    """Return the type "array of `count` elements", flexible if `count` is None."""
    return Array(declare(element, dimension(count)), (count or 0) * element.size, element, count)


def dimension(count: int | None) -> str:
    """Return what C writes behind a name for one dimension of an array: `[3]` or `[]`."""
    return "[]" if count is None else f"[{count}]"


def declare(ctype: CType, name: str) -> str:
    """Return the C declaration of `name`: `char name[16]`, `int (*name)()`, `struct a name`."""
    while isinstance(ctype, Array):
        name += dimension(ctype.count)
        ctype = ctype.element
    if in_brackets := within_brackets(ctype.name, name):
        return in_brackets
    if name.startswith("[") or not name or ctype.name.endswith(("*", "&")):
        return ctype.name + name
    return f"{ctype.name} {name}"


def within_brackets(type_name: str, text: str) -> str | None:
    """Return the name of a pointer to functions or arrays with `text` behind its star, None if it is none."""
    inserted, count = _BRACKETS.subn(lambda found: f"({_beside(found[1], text)})", type_name, count=1)
    return inserted if count else None


def _beside(left: str, right: str) -> str:
    """Join two pieces of C, with a space where two words would become one."""
    return f"{left} {right}" if left[-1:].isalnum() and right[:1].isidentifier() else left + right
