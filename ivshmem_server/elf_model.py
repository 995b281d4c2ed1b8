"""The C types of the ELF view: what DWARF says about a piece of memory, as small immutable objects."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal


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
    if "(*)" in ctype.name:
        return ctype.name.replace("(*)", f"(*{name})", 1)
    if name.startswith("[") or not name or ctype.name.endswith("*"):
        return ctype.name + name
    return f"{ctype.name} {name}"
