"""Which units cannot define a name, told from the raw bytes of .debug_info.

Parsing an entry takes microseconds, and a kernel has ten million of them; looking for bytes is a thousand
times faster. Every test here may say yes without cause, but never no.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from ivshmem_server.elf.dwarf.outline import SIZES, content, forms_of

if TYPE_CHECKING:
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DWARFInfo

# From so many strings on, one search for all of them takes longer than looking each word up in a set.
_MANY = 32
# Forms of names that are numbers of strings in a table of offsets, of so many bytes.
_NUMBERED = {f"DW_FORM_strx{size}": size for size in (1, 2, 3, 4)}
# In 32-bit DWARF, the only one that is looked into.
_SIZES = {**SIZES, "DW_FORM_strp": 4, "DW_FORM_line_strp": 4}
_NAME_FORMS = ("DW_FORM_string", "DW_FORM_strp", *_NUMBERED)


class Mentions:
    """Where in .debug_info one of some names may stand, or the beginning of one if `is_beginning`.

    Either the name stands there itself, or its offset in .debug_str does: a number of 4 or 8 bytes, of
    which 4 are enough. A linker merges strings, so that a name may be the tail of any longer one. From
    DWARF 5 on it may also be the number of such an offset among the unit's in .debug_str_offsets.
    """

    def __init__(self, dwarf: DWARFInfo, names: list[str], *, is_beginning: bool = False) -> None:
        self._info = content(dwarf.debug_info_sec)
        self._texts = [name.encode() + (b"<" if is_beginning else b"\0") for name in names]
        self._order: Literal["little", "big"] = "little" if dwarf.config.little_endian else "big"
        offsets = _places(content(dwarf.debug_str_sec), tuple(self._texts))
        self._words = [offset.to_bytes(4, self._order) for offset in offsets]
        self._numbers = {int.from_bytes(word, sys.byteorder) for word in self._words}
        self._many = len(self._words) > _MANY
        searched = self._texts if self._many else [*self._texts, *self._words]
        self._pattern = re.compile(_any_of(searched), re.DOTALL)
        self._offsets = content(dwarf.debug_str_offsets_sec) if offsets else b""
        shared = dwarf.supplementary_dwarfinfo
        self._shared = shared is not None and bool(_places(content(shared.debug_str_sec), tuple(self._texts)))
        types = content(dwarf.debug_types_sec)
        self.in_types = bool(offsets) or self._shared or any(text in types for text in self._texts)
        """Whether the name may stand in a unit in .debug_types."""

    def mentioned_in(self, unit: CompileUnit) -> bool:
        """Return whether the name may stand anywhere in the unit."""
        start, end = unit.cu_offset, unit.cu_offset + unit.size
        if self._shared or self._pattern.search(self._info, start, end):
            return True
        return (self._many and bool(self._numbers_within(start, end))) or self._indices(unit) != []

    def defined_in(self, unit: CompileUnit, tags: frozenset[str], *, declared: bool) -> bool:
        """Return whether the unit may have an entry with one of these tags that defines (declares) the name.

        Such an entry begins with one of the unit's abbreviation codes for them, followed by what the
        abbreviation says comes before the name.
        """
        if not self.mentioned_in(unit):
            return False
        names, shapes = self.names_in(unit), _shapes(unit, tags, declared=declared)
        if names is None or shapes is None:
            return True
        for form, begins in shapes.items():
            pattern = b"(?:" + b"|".join(begins) + b")" + _any_of(names[form])
            if re.compile(pattern, re.DOTALL).search(self._info, unit.cu_offset, unit.cu_offset + unit.size):
                return True
        return False

    def names_in(self, unit: CompileUnit) -> dict[str, list[bytes]] | None:
        """Return by form what stands where the name does in this unit, None if there is no telling."""
        indices = self._indices(unit)
        if self._shared or indices is None or unit.structs.dwarf_format != 32:
            return None
        words = self._words_within(unit.cu_offset, unit.cu_offset + unit.size)
        names = {"DW_FORM_string": self._texts, "DW_FORM_strp": words}
        for form, size in _NUMBERED.items():
            names[form] = [index.to_bytes(size, self._order) for index in indices if index < 1 << 8 * size]
        return names

    def _indices(self, unit: CompileUnit) -> list[int] | None:
        """Return the numbers of the name among the unit's strings, None if there is no telling."""
        if not self._offsets:
            return []
        base = unit.get_top_DIE().attributes.get("DW_AT_str_offsets_base")
        if base is None:
            return []
        if unit.structs.dwarf_format != 32:
            return None
        # A header of 8 bytes comes before the table, its first word the length of what follows that word.
        # Only .dwo files of before DWARF 5 have none.
        start, end = base.value, len(self._offsets)
        if start >= 8:
            end = start - 4 + int.from_bytes(self._offsets[start - 8 : start - 4], self._order)
        words = memoryview(self._offsets)[start : end - (end - start) % 4].cast("I")
        return [index for index, word in enumerate(words) if word in self._numbers]

    def _words_within(self, start: int, end: int) -> list[bytes]:
        if not self._many:
            return self._words
        return [number.to_bytes(4, sys.byteorder) for number in self._numbers_within(start, end)]

    def _numbers_within(self, start: int, end: int) -> set[int]:
        found: set[int] = set()
        for first in range(start, min(start + 4, end)):
            words = memoryview(self._info)[first : end - (end - first) % 4].cast("I")
            found |= self._numbers.intersection(words)
        return found


# The units in a package share their strings.
@lru_cache(maxsize=2)
def _places(strings: bytes, texts: tuple[bytes, ...]) -> tuple[int, ...]:
    return tuple(match.start() for match in re.finditer(_any_of(list(texts)), strings))


def _any_of(literals: list[bytes]) -> bytes:
    # An empty alternative would match anywhere, this one matches nowhere.
    return b"(?:" + b"|".join(map(re.escape, literals)) + b")" if literals else b"(?!)"


def _shapes(unit: CompileUnit, tags: frozenset[str], *, declared: bool) -> dict[str, list[bytes]] | None:
    """Return the patterns of what may come before the name in entries with these tags, by the name's form.

    None if there is no telling: the pattern is not of a fixed size, or pyelftools hides the abbreviations.
    """
    abbreviations: dict[int, Any] | None = getattr(unit.get_abbrev_table(), "_abbrev_map", None)
    if abbreviations is None or unit.structs.dwarf_format != 32:
        return None
    found: dict[str, list[bytes]] = defaultdict(list)
    for code, abbreviation in abbreviations.items():
        forms = forms_of(abbreviation)
        wanted = abbreviation["tag"] in tags and ("DW_AT_declaration" in forms) == declared
        if wanted and "DW_AT_name" in forms:
            before = list(forms.values())[: list(forms).index("DW_AT_name")]
            if forms["DW_AT_name"] not in _NAME_FORMS or not _SIZES.keys() >= set(before):
                return None
            gap = sum(_SIZES[form] for form in before)
            found[forms["DW_AT_name"]].append(re.escape(_uleb128(code)) + b".{%d}" % gap)
    return found


def _uleb128(number: int) -> bytes:
    """Return the number in 7 bits a byte, the least significant first, all but the last with bit 7 set."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _uleb128(rest) if rest else bytes([low])
