"""Random C definitions with values: C source of initialised objects, and what decoding them must give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from ivshmem_server.elf.ctypes.render import Json

STATES = {"IDLE": 0, "BUSY": 3, "LOST": 7}
LEVELS = {"LOW": -2, "HIGH": 100}
PRELUDE = f"""
typedef unsigned long long u64;
typedef volatile u64 counter_t;
enum state {{ {", ".join(f"{name} = {number}" for name, number in STATES.items())} }};
enum level {{ {", ".join(f"{name} = {number}" for name, number in LEVELS.items())} }};
"""


@dataclass(frozen=True)
class Part:
    """A member: how C declares it (`$` stands for its name), what sets it, and what is decoded from it."""

    declaration: str
    initialiser: str
    decoded: Any
    is_bit_field: bool = False


_INTEGERS = {
    "signed char": (8, True),
    "unsigned char": (8, False),
    "short": (16, True),
    "unsigned short": (16, False),
    "int": (32, True),
    "unsigned int": (32, False),
    "long long": (64, True),
    "unsigned long long": (64, False),
    "counter_t": (64, False),
}


def _range(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low = -(1 << bits - 1) if signed else 0
    return st.integers(low, low + (1 << bits) - 1)


def _literal(number: int) -> str:
    # -2**63 cannot be written in one piece.
    return f"(-{-number - 1}LL - 1)" if number < 0 else f"{number}ULL"


@st.composite
def integers(draw: st.DrawFn) -> Part:
    name = draw(st.sampled_from(list(_INTEGERS)))
    bits, signed = _INTEGERS[name]
    number = draw(_range(bits, signed=signed))
    return Part(f"{name} $", _literal(number), number)


@st.composite
def bit_fields(draw: st.DrawFn) -> Part:
    name = draw(st.sampled_from([name for name in _INTEGERS if name != "int"]))
    bits, signed = _INTEGERS[name]
    # clang 14 takes one as wide as its type for no bit-field, and leaves out where its bits are.
    size = draw(st.integers(1, bits - 1))
    number = draw(_range(size, signed=signed))
    return Part(f"{name} $ : {size}", _literal(number), number, is_bit_field=True)


@st.composite
def enumerations(draw: st.DrawFn) -> Part:
    name, names = draw(st.sampled_from([("state", STATES), ("level", LEVELS)]))
    numbers = {number: key for key, number in names.items()}
    number = draw(st.sampled_from([*numbers, 42]))
    return Part(f"enum {name} $", str(number), numbers.get(number, number))


@st.composite
def enumerations_in_bits(draw: st.DrawFn) -> Part:
    key = draw(st.sampled_from(list(STATES)))
    return Part(f"enum state $ : {draw(st.integers(3, 31))}", key, key, is_bit_field=True)


@st.composite
def floats(draw: st.DrawFn) -> Part:
    name = draw(st.sampled_from(["float", "double"]))
    number = draw(st.floats(width=32 if name == "float" else 64))
    if math.isfinite(number):
        return Part(f"{name} $", number.hex(), number)
    sign = "-" if math.copysign(1, number) < 0 else ""
    text = "nan" if math.isnan(number) else f"{sign}inf"
    return Part(f"{name} $", '__builtin_nan("")' if text == "nan" else f"{sign}__builtin_inf()", text)


@st.composite
def texts(draw: st.DrawFn) -> Part:
    text = draw(st.text(st.characters(min_codepoint=0, max_codepoint=0x7FF), max_size=10))
    content = text.encode()
    size = len(content) + draw(st.integers(1, 4))
    bytes_ = ", ".join(f"(char){byte}" for byte in content) or "0"
    return Part(f"char $[{size}]", f"{{ {bytes_} }}", text.rstrip("\0"))


booleans = st.booleans().map(lambda value: Part("_Bool $", str(int(value)), value))
boolean_bits = st.booleans().map(lambda value: Part("_Bool $ : 1", str(int(value)), value, is_bit_field=True))
# Numbers that fit a pointer of a 32-bit machine, too.
pointers = st.integers(0, 0x7FFF_FFFF).map(lambda number: Part("void *$", f"(void *){number}", number))
functions = st.integers(0, 0x7FFF_FFFF).map(
    lambda number: Part("int (*$)(long)", f"(void *){number}", number)
)


@st.composite
def arrays(draw: st.DrawFn) -> Part:
    """Arrays of integers in one or two dimensions."""
    name = draw(st.sampled_from(list(_INTEGERS)))
    bits, signed = _INTEGERS[name]
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    row = st.lists(_range(bits, signed=signed), min_size=columns, max_size=columns)
    table = draw(st.lists(row, min_size=rows, max_size=rows))
    texts = ["{ " + ", ".join(map(_literal, numbers)) + " }" for numbers in table]
    if draw(st.booleans()):
        return Part(f"{name} $[{columns}]", texts[0], table[0])
    return Part(f"{name} $[{rows}][{columns}]", "{ " + ", ".join(texts) + " }", table)


plain = st.one_of(integers(), enumerations(), floats(), texts(), booleans, pointers, functions, arrays())
bits = st.one_of(bit_fields(), enumerations_in_bits(), boolean_bits)
_ATTRIBUTES = ["", "", " __attribute__((packed))", " __attribute__((aligned(16)))"]


@st.composite
def records(draw: st.DrawFn, prefix: str = "m", depth: int = 2) -> Part:
    """A struct or union, its members set to known values; of a union one."""
    kind = draw(st.sampled_from(["struct", "struct", "struct", "union"]))
    lines, setters, decoded = [], [], {}
    total = draw(st.integers(1, 6))
    chosen = draw(st.integers(0, total - 1))
    for i in range(total):
        name = f"{prefix}{i}"
        nested = depth > 0 and draw(st.integers(0, 3)) == 0
        part = draw(repeated(f"{name}_", depth - 1) if nested else plain | bits)
        lines.append(part.declaration.replace("$", name))
        if part.is_bit_field and draw(st.booleans()):
            lines.append(f"unsigned int : {draw(st.integers(0, 9))}")
        if kind == "struct" or i == chosen:
            setters.append(f".{name} = {part.initialiser}")
            decoded[name] = part.decoded
    if kind == "struct" and depth > 0 and draw(st.booleans()):
        # Its members are reached, set and decoded as members of this struct.
        inner = draw(records(f"{prefix}x", 0))
        lines.append(inner.declaration.replace("$", ""))
        setters.append(inner.initialiser.removeprefix("{ ").removesuffix(" }"))
        decoded |= inner.decoded
    attribute = draw(st.sampled_from(_ATTRIBUTES))
    body = "; ".join(lines)
    return Part(f"{kind}{attribute} {{ {body}; }} $", "{ " + ", ".join(setters) + " }", decoded)


@st.composite
def repeated(draw: st.DrawFn, prefix: str, depth: int) -> Part:
    """A struct or union, or an array of equal ones."""
    part = draw(records(prefix, depth))
    count = draw(st.sampled_from([None, None, 1, 3]))
    if count is None:
        return part
    initialiser = f"{{ [0 ... {count - 1}] = {part.initialiser} }}"
    return Part(f"{part.declaration}[{count}]", initialiser, [part.decoded] * count)


def program(parts: list[Part]) -> str:
    """Return C that defines the types record_0_t, record_1_t... and the variables record_0, record_1..."""
    lines = [PRELUDE]
    for i, part in enumerate(parts):
        lines.append(f"typedef {part.declaration.replace('$', f'record_{i}_t')};")
        lines.append(f"record_{i}_t record_{i} = {part.initialiser};")
    return "\n".join(lines)


def agrees(expected: Json, decoded: Json) -> bool:
    """Return whether everything expected was decoded; of a union more is decoded than was set."""
    if isinstance(expected, dict) and isinstance(decoded, dict):
        return all(key in decoded and agrees(value, decoded[key]) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(decoded, list):
        return len(expected) == len(decoded) and all(map(agrees, expected, decoded))
    return type(expected) is type(decoded) and expected == decoded
