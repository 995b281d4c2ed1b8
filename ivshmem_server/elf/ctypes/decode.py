"""Decoding memory with a C type: from bytes to a tree of values."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass

from ivshmem_server.elf.ctypes.model import (
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
    Variants,
    strip,
)

Memory = bytes | bytearray | memoryview | mmap.mmap

Item = bool | int | float | bytes
"""What a single value is in Python. Enumerators and pointers are numbers; so is a bool that is not 0 or 1.

Arrays of plain char, and types Python has no number for (long double), are bytes.
"""

_SIGNED = {1: "b", 2: "h", 4: "i", 8: "q"}
_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}
_FLOATS = {2: "e", 4: "f", 8: "d"}
_SIGNED_ENCODINGS = (Encoding.SIGNED, Encoding.SIGNED_CHAR)


@dataclass(frozen=True, slots=True)
class Value:
    """A decoded object: its type, and the offset in the buffer where it begins, in bytes."""

    type: CType
    offset: int


@dataclass(frozen=True, slots=True)
class Leaf(Value):
    """A value without parts: a number, an enumerator, a pointer, an array of char."""

    content: Item


@dataclass(frozen=True, slots=True)
class Row(Value):
    """An array of numbers, without an object for each of them."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Table(Value):
    """An array of structs, unions or arrays."""

    elements: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Group(Value):
    """A struct, union or class, with the values of its members in order."""

    fields: tuple[tuple[Member, Value], ...]


@dataclass(frozen=True, slots=True)
class Choice(Value):
    """The variant that the discriminant says, with the values of its members in order.

    `fields` is None if there is no such variant. `discriminant` is None where none is stored.
    """

    discriminant: int | None
    fields: tuple[tuple[Member, Value], ...] | None


@dataclass(frozen=True, slots=True)
class Unreadable(Value):
    """What cannot be shown: the type, an Opaque, says why."""


def decode(ctype: CType, buffer: Memory, offset: int = 0, *, flexible: int = 64) -> Value:
    """Decode an object of this type that begins `offset` bytes into the buffer.

    The bytes are copied once, before any of them is read: the parts of the result belong together as well
    as one memcpy can see to, although others write to the memory. A flexible array at the end is decoded
    as far as the buffer goes, up to `flexible` elements. Raises ElfViewError if the object does not lie
    within the buffer.
    """
    with memoryview(buffer).cast("B") as memory:
        _check_bounds(ctype, len(memory), offset)
        data = bytes(memory[offset : offset + _reach(ctype, flexible)])
    return _Decoder(data, offset, flexible).value(ctype, 0, at_end=True)


def _check_bounds(ctype: CType, length: int, offset: int) -> None:
    if offset < 0:
        raise ElfViewError(f"offset {offset} is negative: give one from 0 to {length}, in bytes")
    left = max(length - offset, 0)
    if offset > length or ctype.size > left:
        raise ElfViewError(
            f"{ctype.name} takes {ctype.size} bytes, but at offset {offset:#x} only {left} of the memory's "
            f"{length} are left: give a smaller offset, or share more memory"
        )


def _reach(ctype: CType, flexible: int) -> int:
    """Return the size of the object in bytes, with that many elements of a flexible array at its end."""
    match strip(ctype):
        case Array() as array if not array.count:
            return flexible * array.element.size
        case Record() as record:
            ends = (member.offset + _reach(member.type, flexible) for member in _last_members(record))
            return max(record.size, *ends, 0)
        case other:
            return other.size


def _last_members(record: Record) -> tuple[Member, ...]:
    """Return the members that a flexible array may stand in: the last one of a struct, any of a union."""
    return record.members if record.kind == "union" else record.members[-1:]


@dataclass(frozen=True)
class _Decoder:
    data: bytes
    base: int
    flexible: int

    def value(self, ctype: CType, at: int, *, at_end: bool) -> Value:
        """Decode what begins `at` bytes into the data. `at_end`: a flexible array here has elements."""
        match strip(ctype):
            case Record() as record:
                return self._record(ctype, record, at, at_end=at_end)
            case Array() as array:
                return self._array(ctype, array, at, at_end=at_end)
            case Variants() as variants:
                return self._variants(variants, at)
            case Opaque():
                return Unreadable(ctype, self.base + at)
            case plain:
                return Leaf(ctype, self.base + at, _items(plain, self.data, at, 1)[0])

    def _record(self, ctype: CType, record: Record, at: int, *, at_end: bool) -> Value:
        last = {id(member) for member in _last_members(record)} if at_end else set()
        fields = ((member, self._member(member, at, at_end=id(member) in last)) for member in record.members)
        return Group(ctype, self.base + at, tuple(fields))

    def _variants(self, variants: Variants, at: int) -> Value:
        discriminant = None
        if variants.discriminant is not None:
            stored = self._member(variants.discriminant, at, at_end=False)
            discriminant = (
                stored.content if isinstance(stored, Leaf) and isinstance(stored.content, int) else None
            )
        active = variants.active(discriminant)
        members = () if active is None else active.members
        fields = tuple((member, self._member(member, at, at_end=False)) for member in members)
        return Choice(variants, self.base + at, discriminant, None if active is None else fields)

    def _member(self, member: Member, at: int, *, at_end: bool) -> Value:
        if member.bit_offset is None or member.bit_size is None:
            return self.value(member.type, at + member.offset, at_end=at_end)
        content = _bits(strip(member.type), self.data, 8 * at + member.bit_offset, member.bit_size)
        return Leaf(member.type, self.base + at + member.offset, content)

    def _array(self, ctype: CType, array: Array, at: int, *, at_end: bool) -> Value:
        element, count = strip(array.element), self._count(array, at, at_end=at_end)
        offset = self.base + at
        if isinstance(element, Record | Array):
            places = range(at, at + count * element.size, element.size or 1)
            return Table(
                ctype, offset, tuple(self.value(array.element, place, at_end=False) for place in places)
            )
        if is_text(array):
            return Leaf(ctype, offset, self.data[at : at + count])
        return Row(ctype, offset, _items(element, self.data, at, count))

    def _count(self, array: Array, at: int, *, at_end: bool) -> int:
        if array.count:
            return array.count
        room = (len(self.data) - at) // (array.element.size or 1)
        return max(0, min(room, self.flexible)) if at_end else 0


def is_text(ctype: CType) -> bool:
    """Return whether this is an array of plain `char`, which C uses for text."""
    array = strip(ctype)
    if not isinstance(array, Array):
        return False
    element = strip(array.element)
    return isinstance(element, Scalar) and element.encoding in (Encoding.SIGNED_CHAR, Encoding.UNSIGNED_CHAR)


def _items(ctype: CType, data: bytes, at: int, count: int) -> tuple[Item, ...]:
    """Decode `count` values without parts that lie one after the other."""
    size, big_endian = ctype.size, _is_big_endian(ctype)
    code = _code(ctype)
    if code is None:
        chunks = (data[place : place + size] for place in range(at, at + count * size, size or 1))
        return tuple(_item(ctype, chunk) for chunk in chunks)
    items: tuple[Item, ...] = struct.unpack_from(f"{'>' if big_endian else '<'}{count}{code}", data, at)
    return tuple(map(_as_bool, items)) if _is_bool(ctype) else items


def _code(ctype: CType) -> str | None:
    """Return the letter by which `struct` knows the type, None if it does not."""
    if isinstance(ctype, Scalar) and ctype.encoding is Encoding.RAW:
        return None
    if isinstance(ctype, Scalar) and ctype.encoding is Encoding.FLOAT:
        return _FLOATS.get(ctype.size)
    return (_SIGNED if _is_signed(ctype) else _UNSIGNED).get(ctype.size)


def _item(ctype: CType, chunk: bytes) -> Item:
    if isinstance(ctype, Scalar) and ctype.encoding in (Encoding.RAW, Encoding.FLOAT):
        return chunk
    return int.from_bytes(chunk, "big" if _is_big_endian(ctype) else "little", signed=_is_signed(ctype))


def _bits(ctype: CType, data: bytes, first: int, size: int) -> Item:
    """Decode a bit-field of `size` bits whose first bit, in memory order, is number `first` of the data."""
    start, end = first // 8, (first + size + 7) // 8
    if _is_big_endian(ctype):
        word = int.from_bytes(data[start:end], "big") >> (8 * end - first - size)
    else:
        word = int.from_bytes(data[start:end], "little") >> (first - 8 * start)
    word &= (1 << size) - 1
    if _is_signed(ctype) and word >> (size - 1):
        return word - (1 << size)
    return _as_bool(word) if _is_bool(ctype) else word


def _as_bool(item: Item) -> Item:
    return bool(item) if item in (0, 1) else item


def _is_bool(ctype: CType) -> bool:
    return isinstance(ctype, Scalar) and ctype.encoding is Encoding.BOOL


def _is_signed(ctype: CType) -> bool:
    if isinstance(ctype, Scalar):
        return ctype.encoding in _SIGNED_ENCODINGS
    return isinstance(ctype, Enum) and ctype.signed


def _is_big_endian(ctype: CType) -> bool:
    return isinstance(ctype, Scalar | Enum | Pointer) and ctype.big_endian
