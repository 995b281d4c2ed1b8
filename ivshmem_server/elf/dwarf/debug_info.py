"""The DWARF of one file, or of one unit in a package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from elftools.dwarf.dwarfinfo import DWARFInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from elftools.dwarf.die import DIE


@dataclass(frozen=True)
class DebugFile:
    """The DWARF of an ELF, read into memory: no file is open any more.

    `base` is the offset in the file's .debug_info of what is offset 0 here, other than 0 in a package.
    """

    path: Path
    dwarf: DWARFInfo
    little_endian: bool
    base: int = 0


# By DWARF and signature: the offsets of the types in DWARF 5's type units, which pyelftools does not find.
_signed: WeakKeyDictionary[DWARFInfo, dict[int, int]] = WeakKeyDictionary()


def follow(die: DIE, attribute: str) -> DIE:
    """Return the entry that an attribute refers to, in a type unit if it does so by a signature."""
    reference = die.attributes[attribute]
    if reference.form != "DW_FORM_ref_sig8":
        return die.get_DIE_from_attribute(attribute)
    found = signed_type(die.dwarfinfo, reference.raw_value)
    return die.dwarfinfo.get_DIE_by_sig8(reference.raw_value) if found is None else found


def signed_type(dwarf: DWARFInfo, signature: int) -> DIE | None:
    """Return the type with this signature, None if it is not in this DWARF itself."""
    if dwarf not in _signed:
        _signed[dwarf] = dict(_signed_types(dwarf))
    if signature in _signed[dwarf]:
        return dwarf.get_DIE_from_refaddr(_signed[dwarf][signature])
    try:
        return DWARFInfo.get_DIE_by_sig8(dwarf, signature)
    except KeyError:
        return None


def _signed_types(dwarf: DWARFInfo) -> Iterator[tuple[int, int]]:
    for unit in dwarf.iter_CUs():
        if unit.header.get("unit_type") in ("DW_UT_type", "DW_UT_split_type"):
            yield unit["type_signature"], unit.cu_offset + unit["type_offset"]
