"""The discriminants of a record's variants, as DWARF 5 states them (section 5.7.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ivshmem_server.elf.ctypes.model import ElfViewError, Encoding, Enum, Scalar, strip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.die import DIE

    from ivshmem_server.elf.ctypes.model import CType

# DW_DSC_*: whether one discriminant follows, or the lowest and the highest one of a range.
_LABEL, _RANGE = 0, 1
_NUMBERS = frozenset(Encoding) - {Encoding.FLOAT, Encoding.RAW}


class Discriminants:
    """How the numbers in DWARF stand for values of one discriminant's type."""

    def __init__(self, ctype: CType) -> None:
        """Raise ElfViewError if memory of this type holds no number."""
        plain = strip(ctype)
        if isinstance(plain, Scalar) and plain.encoding in _NUMBERS:
            self._signed = plain.encoding in (Encoding.SIGNED, Encoding.SIGNED_CHAR)
        elif isinstance(plain, Enum):
            self._signed = plain.signed
        else:
            raise ElfViewError(f"the discriminant is of type {ctype.name}, which is not a number")
        self._bits = 8 * plain.size
        self._big_endian = plain.big_endian

    def of_variant(self, die: DIE) -> tuple[tuple[int, int], ...] | None:
        """Return the discriminants that the variant is for as ranges, None if it is for all others."""
        if "DW_AT_discr_value" in die.attributes:
            number = self._number(die.attributes["DW_AT_discr_value"].value)
            return ((number, number),)
        if "DW_AT_discr_list" in die.attributes:
            return tuple(self._ranges(bytes(die.attributes["DW_AT_discr_list"].value)))
        return None

    def _number(self, value: Any) -> int:
        """Return what memory holds for a value written in a form of any size and sign, or as bytes."""
        if not isinstance(value, int):
            value = int.from_bytes(bytes(value), "big" if self._big_endian else "little")
        return wrap(value, self._bits, signed=self._signed)

    def _ranges(self, block: bytes) -> Iterator[tuple[int, int]]:
        numbers = iter(block)
        for kind in numbers:
            low = self._number(_leb128(numbers, signed=self._signed))
            high = low if kind == _LABEL else self._number(_leb128(numbers, signed=self._signed))
            if kind not in (_LABEL, _RANGE):
                raise ElfViewError(f"the debug information is damaged: a list of discriminants has a {kind}")
            yield low, high


def wrap(value: int, bits: int, *, signed: bool) -> int:
    """Return the number that these lowest bits of `value` stand for."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _leb128(numbers: Iterator[int], *, signed: bool) -> int:
    """Read a number of 7 bits a byte, the least significant first, all but the last with bit 7 set."""
    value = shift = 0
    for byte in numbers:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return wrap(value, shift, signed=signed)
    raise ElfViewError("the debug information is damaged: a list of discriminants ends early")
