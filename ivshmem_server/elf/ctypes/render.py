"""Showing decoded memory: as a tree that a person can read, and as data for JSON."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from ivshmem_server.elf.ctypes.decode import (
    Choice,
    Group,
    Item,
    Leaf,
    Row,
    Table,
    Unreadable,
    Value,
    is_text,
)
from ivshmem_server.elf.ctypes.model import (
    Array,
    Encoding,
    Enum,
    Opaque,
    Pointer,
    Record,
    Scalar,
    declare,
    strip,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ivshmem_server.elf.ctypes.model import CType, Member

Json = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

SHOWN = 256
"""How many elements of an array are shown if nothing else is asked for."""

_INDENT = "  "
_ROW_LENGTH = 16
_HEX_FROM = 10
# Values stand in one column, unless a declaration is longer than this.
_MAX_COLUMN = 48


def to_json(value: Value) -> Json:
    r"""Return the value as dicts, lists, strings and numbers, for json.dumps.

    A struct is a dict, with the members of anonymous structs and unions among its own, as in C, and those of
    a C++ base class unless a name would be there twice: then the base class is a dict under its own name. An
    enumerator is its name, one that has none its number. A Rust enum is a dict of one key, the name of the
    variant, or "unknown discriminant" with the number. What cannot be shown is a dict with the key
    "unreadable", which says why. Arrays of char are strings without the zero bytes at the end; bytes that are
    no UTF-8 appear as \xNN. A float that JSON has no number for is "nan", "inf" or "-inf"; what Python has no
    number for is a string of hexadecimal digits.
    """
    match value:
        case Group(fields=fields):
            return _json_members(fields)
        case Choice(fields=fields, discriminant=discriminant):
            return {"unknown discriminant": discriminant} if fields is None else _json_members(fields)
        case Table(elements=elements):
            return [to_json(element) for element in elements]
        case Row(items=items):
            element = _element(value)
            return [_json_item(element, item) for item in items]
        case Leaf(content=content):
            return _json_item(value.type, content)
        case Unreadable(type=Opaque(reason=reason)):
            return {"unreadable": reason}
    raise TypeError(f"{value!r} is not a decoded value")


def _json_members(fields: Sequence[tuple[Member, Value]]) -> dict[str, Json]:
    parts = [(member.name, value, to_json(value)) for member, value in fields]
    names = Counter(name for name, _, _ in parts if name is not None)
    for name, value, data in parts:
        if _is_spread(name, value) and isinstance(data, dict):
            names.update(data.keys())
    found: dict[str, Json] = {}
    for name, value, data in parts:
        if _is_spread(name, value) and isinstance(data, dict) and all(names[key] == 1 for key in data):
            found.update(data)
        else:
            found[name or _type_name(value.type)] = data
    return found


def _is_spread(name: str | None, value: Value) -> bool:
    """Return whether the members of this member are reached as those of the one around it."""
    return name is None and not isinstance(value, Unreadable)


def _type_name(ctype: CType) -> str:
    plain = strip(ctype)
    return (plain.tag if isinstance(plain, Record) else None) or re.sub(r"^(struct|class) ", "", ctype.name)


def _json_item(ctype: CType, item: Item) -> Json:
    plain = strip(ctype)
    if isinstance(item, bytes):
        return _text(item) if is_text(plain) else item.hex()
    if isinstance(item, float) and not math.isfinite(item):
        return str(item)
    name = plain.name_of(item) if isinstance(plain, Enum) and isinstance(item, int) else None
    return item if name is None else name


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode("utf-8", "backslashreplace")


class _Line(NamedTuple):
    # None where it is not known.
    offset: int | None
    text: str
    value: str | None = None


def render(value: Value, *, limit: int = SHOWN) -> str:
    """Return the value as a tree, a line a member: offset in the buffer, C declaration and value.

    The first line names the type, where it begins and its size in bytes. Of each array no more than the
    first `limit` elements are shown, and a run of equal ones as one.
    """
    head = f"{value.type.name} at {value.offset:#x}, {value.type.size} bytes"
    lines = list(_parts(value, "", limit))
    digits = max((len(f"{line.offset or 0:#x}") for line in lines), default=0)
    column = max((len(line.text) for line in lines if line.value is not None), default=0)
    return "\n".join([head, *(_line_text(line, digits, min(column, _MAX_COLUMN)) for line in lines)])


def _line_text(line: _Line, digits: int, column: int) -> str:
    # Zeros behind the 0x: offsets of one width read as a column.
    offset = "?" * digits if line.offset is None else f"{line.offset:#0{digits}x}"
    if line.value is None:
        return f"{offset}  {line.text}"
    return f"{offset}  {line.text:<{column}} = {line.value}"


def _object(value: Value, label: str, indent: str, limit: int) -> Iterator[_Line]:
    """Yield the line of one object, and below it those of its parts if they do not fit in."""
    text = _inline(value, limit)
    yield _Line(_place(value), indent + label, text)
    body = value if text is None else _body(value)
    if body is not None:
        yield from _parts(body, indent + _INDENT, limit)


def _place(value: Value) -> int | None:
    return None if isinstance(value.type, Opaque) and not value.type.located else value.offset


def _choice(value: Value) -> Choice | None:
    """Return the active variant of what consists of variants only, such as a Rust enum."""
    match value:
        case Group(fields=((_, Choice() as choice),)):
            return choice
        case _:
            return None


def _body(value: Value) -> Value | None:
    """Return what is shown below a value that stands behind its declaration: the members of a variant."""
    choice = _choice(value)
    return choice.fields[0][1] if choice is not None and choice.fields else None


def _parts(value: Value, indent: str, limit: int) -> Iterator[_Line]:
    match value:
        case Choice(fields=None):
            yield _Line(value.offset, indent + _no_variant(value))
        case Choice(fields=tuple(fields)):
            for member, field in fields:
                # A variant with members is a struct of the variant's name.
                label = member.name if isinstance(field, Group) else None
                yield from _object(field, label or _declaration(member), indent, limit)
        case Group(fields=fields):
            for member, field in fields:
                if isinstance(field, Choice):
                    yield from _parts(field, indent, limit)
                else:
                    yield from _object(field, _declaration(member), indent, limit)
        case Table(elements=elements):
            yield from _elements(elements, indent, limit)
        case Row(items=items):
            yield from _rows(value, items, indent, limit)
        case _:
            yield _Line(value.offset, indent + value.type.name, _inline(value, limit))


def _declaration(member: Member) -> str:
    name = member.name or ""
    return declare(member.type, name if member.bit_size is None else f"{name}:{member.bit_size}")


def _elements(elements: Sequence[Value], indent: str, limit: int) -> Iterator[_Line]:
    first = 0
    for _, run in groupby(elements[:limit], key=to_json):
        equal = list(run)
        yield from _object(equal[0], _indices(first, len(equal)), indent, limit)
        first += len(equal)
    if len(elements) > limit:
        yield _Line(elements[limit].offset, f"{indent}... {len(elements) - limit} more")


def _rows(value: Value, items: Sequence[Item], indent: str, limit: int) -> Iterator[_Line]:
    """Yield the elements of a long array of numbers, some to a line."""
    element = _element(value)
    runs = list(_runs(items[:limit]))
    for begin in range(0, len(runs), _ROW_LENGTH):
        row = runs[begin : begin + _ROW_LENGTH]
        first = row[0][0]
        count = sum(length for _, length, _ in row)
        offset = value.offset + first * element.size
        yield _Line(offset, indent + _indices(first, count), _row_text(element, row))
    if len(items) > limit:
        yield _Line(value.offset + limit * element.size, f"{indent}... {len(items) - limit} more")


def _runs(items: Sequence[Item]) -> Iterator[tuple[int, int, Item]]:
    """Yield first index, length and value of each run of equal items."""
    first = 0
    for item, run in groupby(items):
        length = len(list(run))
        yield first, length, item
        first += length


def _indices(first: int, count: int) -> str:
    return f"[{first}]" if count == 1 else f"[{first}..{first + count - 1}]"


def _inline(value: Value, limit: int) -> str | None:
    """Return what stands behind the declaration, None if the value needs lines of its own."""
    match value:
        case Leaf(content=bytes() as content) if is_text(value.type):
            return _quoted(content, limit)
        case Leaf(content=content):
            return _item_text(value.type, content)
        case Row(items=items) if len(items) <= limit:
            runs = list(_runs(items))
            return _row_text(_element(value), runs) if len(runs) <= _ROW_LENGTH else None
        case Table(elements=()):
            return "{}"
        case _:
            return _other_inline(value)


def _other_inline(value: Value) -> str | None:
    if isinstance(value.type, Opaque):
        return value.type.reason
    choice = _choice(value)
    return None if choice is None else _variant_name(choice)


def _variant_name(choice: Choice) -> str | None:
    """Return the name of the variant, None if it has members of its own instead of one struct of its name."""
    match choice.fields:
        case None:
            return _no_variant(choice)
        case ((member, Group()),):
            return member.name
        case _:
            return None


def _no_variant(choice: Choice) -> str:
    number = choice.discriminant
    return "no variant" if number is None else f"no variant has the discriminant {_number_text(number)}"


def _row_text(element: CType, runs: Sequence[tuple[int, int, Item]]) -> str:
    texts = (
        _short_text(element, item) + (f" ({length} times)" if length > 1 else "") for _, length, item in runs
    )
    return "{" + ", ".join(texts) + "}"


def _element(value: Value) -> CType:
    array = strip(value.type)
    return array.element if isinstance(array, Array) else array


def _short_text(ctype: CType, item: Item) -> str:
    """Return one of many numbers: in one base, bytes, which are mostly no quantities, in hexadecimal."""
    match strip(ctype):
        case Scalar(size=1, encoding=Encoding.UNSIGNED) if isinstance(item, int):
            return f"{item:#04x}"
        case Scalar(encoding=Encoding.SIGNED | Encoding.UNSIGNED):
            return str(item)
        case plain:
            return _item_text(plain, item)


def _item_text(ctype: CType, item: Item) -> str:
    if isinstance(item, bytes):
        return item.hex(" ")
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, float):
        return repr(item)
    return _int_text(strip(ctype), item)


def _int_text(plain: CType, number: int) -> str:
    match plain:
        case Enum():
            name = plain.name_of(number)
            return str(number) if name is None else f"{name} ({number})"
        case Pointer():
            return f"{number:#x}"
        case Scalar(encoding=Encoding.SIGNED_CHAR | Encoding.UNSIGNED_CHAR):
            character = chr(number & 0x7F)
            return f"{number} '{character}'" if 0 < number < 0x7F and character.isprintable() else str(number)
        case _:
            return _number_text(number)


def _number_text(number: int) -> str:
    return f"{number} ({number:#x})" if number >= _HEX_FROM else str(number)


def _quoted(content: bytes, limit: int) -> str:
    shown = "".join(map(_printable, _text(content[:limit])))
    return f'"{shown}"' if len(content) <= limit else f'"{shown}" ... {len(content) - limit} more'


def _printable(character: str) -> str:
    if character == '"':
        return '\\"'
    return character if character.isprintable() else character.encode("unicode_escape").decode()
