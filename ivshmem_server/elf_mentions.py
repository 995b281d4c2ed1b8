"""Telling from the raw bytes of .debug_info which units cannot define a name: most of a large ELF's.

Parsing an entry takes microseconds, and a kernel has ten million of them; looking for bytes is a thousand
times faster. Every test here may say yes without cause, but never no.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DWARFInfo

# From so many strings on, one search for all of them takes longer than looking each word up in a set.
_MANY = 32
# Sizes of attributes in 32-bit DWARF, by form (DWARF 5, section 7.5.6), as far as they are fixed.
_SIZES = {
    "DW_FORM_flag_present": 0,
    "DW_FORM_implicit_const": 0,
    "DW_FORM_data1": 1,
    "DW_FORM_flag": 1,
    "DW_FORM_data2": 2,
    "DW_FORM_data4": 4,
    "DW_FORM_ref4": 4,
    "DW_FORM_strp": 4,
    "DW_FORM_data8": 8,
}
_NAME_FORMS = ("DW_FORM_string", "DW_FORM_strp")


def content(section: DebugSectionDescriptor | None) -> bytes:
    """Return all bytes of a section, none if the ELF does not have it."""
    if section is None:
        return b""
    section.stream.seek(0)
    return section.stream.read()


class Mentions:
    """Where in .debug_info a name may stand.

    Either the name stands there itself, or its offset in .debug_str does: a number of 4 or 8 bytes, of
    which 4 are enough. A linker merges strings, so that a name may be the tail of any longer one.
    """

    def __init__(self, dwarf: DWARFInfo, name: str) -> None:
        self._info = content(dwarf.debug_info_sec)
        self._text = name.encode() + b"\0"
        strings = content(dwarf.debug_str_sec)
        order: Literal["little", "big"] = "little" if dwarf.config.little_endian else "big"
        offsets = [match.start() for match in re.finditer(re.escape(self._text), strings)]
        self._words = [offset.to_bytes(4, order) for offset in offsets]
        self._numbers = {int.from_bytes(word, sys.byteorder) for word in self._words}
        self._many = len(self._words) > _MANY
        searched = [self._text] if self._many else [self._text, *self._words]
        self._pattern = re.compile(_any_of(searched), re.DOTALL)
        # Strings may also be numbered in a table of their own, or be in the file that several ELFs share.
        self._indirect = dwarf.debug_str_offsets_sec is not None or dwarf.supplementary_dwarfinfo is not None

    def within(self, start: int, end: int) -> bool:
        """Return whether the name may stand between these offsets in the section."""
        if self._indirect or self._pattern.search(self._info, start, end):
            return True
        return self._many and bool(self._numbers_within(start, end))

    def defined_in(self, unit: CompileUnit, tags: frozenset[str], *, declared: bool) -> bool:
        """Return whether the unit may have an entry with one of these tags that defines (declares) the name.

        Such an entry begins with one of the unit's abbreviation codes for them, followed by what the
        abbreviation says comes before the name.
        """
        start, end = unit.cu_offset, unit.cu_offset + unit.size
        if not self.within(start, end):
            return False
        shapes = None if self._indirect else _shapes(unit, tags, declared=declared)
        if shapes is None:
            return True
        names = {"DW_FORM_string": [self._text], "DW_FORM_strp": self._words_within(start, end)}
        for form, begins in shapes.items():
            pattern = b"(?:" + b"|".join(begins) + b")" + _any_of(names[form])
            if re.compile(pattern, re.DOTALL).search(self._info, start, end):
                return True
        return False

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
        forms = {spec.name: spec.form for spec in abbreviation["attr_spec"]}
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
