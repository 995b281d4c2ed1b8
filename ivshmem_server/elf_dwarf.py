"""The DWARF of one file, or of one unit in a package of them, as the ELF view passes it around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo
    from elftools.dwarf.typeunit import TypeUnit


@dataclass(frozen=True)
class DebugFile:
    """The DWARF of an ELF, read into memory: no file is open any more.

    `base` is the offset in the file's .debug_info of what is offset 0 here, other than 0 in a package.
    """

    path: Path
    dwarf: DWARFInfo
    little_endian: bool
    base: int = 0


class TypeUnits:
    """The types that units refer to by a signature, which stand in units of their own."""

    def __init__(self, dwarf: DWARFInfo) -> None:
        """Go through the headers of all units."""
        self._places: dict[int, tuple[CompileUnit | TypeUnit, int]] = dict(_places(dwarf))

    def get(self, signature: int) -> DIE | None:
        """Return the entry that defines the type, None if it is not in here."""
        if signature not in self._places:
            return None
        unit, offset = self._places[signature]
        return unit.get_DIE_from_refaddr(offset)


def _places(dwarf: DWARFInfo) -> Iterator[tuple[int, tuple[CompileUnit | TypeUnit, int]]]:
    # From DWARF 5 on they are among the others, before it in a section of their own.
    for unit in dwarf.iter_CUs():
        if unit.header.get("unit_type") in ("DW_UT_type", "DW_UT_split_type"):
            yield unit["type_signature"], (unit, unit.cu_offset + unit["type_offset"])
    for type_unit in dwarf.iter_TUs():
        yield type_unit["signature"], (type_unit, type_unit.tu_offset + type_unit["type_offset"])
