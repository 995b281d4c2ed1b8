"""Split DWARF (DWARF 5, section 7.3): .dwo files, and .dwp packages of them."""

from __future__ import annotations

import inspect
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from elftools.construct.lib.container import Container
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.debug_info import DebugFile, signed_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from elftools.dwarf.abbrevtable import AbbrevTable
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.elf.elffile import ELFFile

_INFO, _TYPES = ".debug_info", ".debug_types"
# DW_SECT_* (DWARF 5, section 7.3.5.3, and GNU's before it), by number: those that types need.
_CONTRIBUTIONS = {1: _INFO, 2: _TYPES, 3: ".debug_abbrev", 4: ".debug_line", 6: ".debug_str_offsets"}
_INDICES = (".debug_cu_index", ".debug_tu_index")
# Forms that pyelftools does not know, or looks up in sections that only the program has: as numbers.
_FORMS = {
    "DW_FORM_GNU_str_index": "DW_FORM_strx",
    **dict.fromkeys(["DW_FORM_GNU_addr_index", "DW_FORM_addrx"], "DW_FORM_udata"),
    **dict.fromkeys(["DW_FORM_loclistx", "DW_FORM_rnglistx"], "DW_FORM_udata"),
    **{f"DW_FORM_addrx{size}": f"DW_FORM_data{size}" for size in (1, 2, 4)},
}
_UNITS = ("DW_TAG_compile_unit", "DW_TAG_type_unit", "DW_TAG_partial_unit")
_DWO_IDS = ("DW_AT_GNU_dwo_id", "DW_AT_dwo_id")


def is_split(elf: ELFFile) -> bool:
    """Return whether this is a .dwo or .dwp file, or an object that is a .dwo file besides."""
    return elf.has_section(f"{_INFO}.dwo") or elf.has_section(f"{_TYPES}.dwo")


def dwo_id_of(unit: CompileUnit) -> int | None:
    """Return what a unit in the program and that in its .dwo file have in common, None if it has none."""
    if "dwo_id" in unit.header:
        return int(unit.header["dwo_id"])
    attributes = unit.get_top_DIE().attributes
    return next((int(attributes[name].value) for name in _DWO_IDS if name in attributes), None)


class SplitFile:
    """What a .dwo or .dwp file holds, read into memory: the DWARF of each unit by itself."""

    def __init__(self, path: Path, elf: ELFFile) -> None:
        """Read the sections. Raises ElfViewError if the index of a package cannot be used."""
        self.path = path
        self.little_endian = bool(elf.little_endian)
        self._config = DwarfConfig(elf.little_endian, elf.get_machine_arch(), elf.elfclass // 8)
        self._sections: dict[str, bytes] = {}
        for section in elf.iter_sections():
            name = section.name.removesuffix(".dwo")
            if name != section.name or name in _INDICES:
                # An object has a section of its own for each of its type units.
                self._sections[name] = self._sections.get(name, b"") + section.data()
        self._rows = [row for name in _INDICES if name in self._sections for row in self._index(name)]
        self._files: dict[int, DebugFile] = {}

    def __iter__(self) -> Iterator[DebugFile]:
        if not self._is_package:
            yield self._file(0, self._sections, 0)
        for number in range(len(self._rows)):
            yield self._of_row(number)

    def unit(self, dwo_id: int | None) -> DebugFile | None:
        """Return the DWARF of the unit with this id, None if it is not in here."""
        if self._is_package:
            rows = (
                number for number, row in enumerate(self._rows) if row.signature == dwo_id and row.is_unit
            )
            return next(map(self._of_row, rows), None)
        (file,) = self
        return file if any(dwo_id_of(unit) == dwo_id for unit in file.dwarf.iter_CUs()) else None

    def types(self) -> Iterator[DebugFile]:
        """Yield the type units in a package, which its units share."""
        for number, row in enumerate(self._rows):
            if not row.is_unit:
                yield self._of_row(number)

    @property
    def _is_package(self) -> bool:
        return any(name in self._sections for name in _INDICES)

    def _index(self, name: str) -> Iterator[_Row]:
        order = "<" if self.little_endian else ">"
        data = self._sections[name]
        (version,) = struct.unpack_from(f"{order}I", data)
        if version not in (2, 5):
            (version,) = struct.unpack_from(f"{order}H", data)
        if version not in (2, 5):
            raise ElfViewError(
                f"{self.path}: a package of version {version} is not supported: give .dwo files"
            )
        sections, units, slots = struct.unpack_from(f"{order}3I", data, 4)
        signatures = struct.unpack_from(f"{order}{slots}Q", data, 16)
        numbers = struct.unpack_from(f"{order}{slots}I", data, 16 + 8 * slots)
        start = 16 + 12 * slots
        columns = struct.unpack_from(f"{order}{sections}I", data, start)
        for signature, number in zip(signatures, numbers, strict=True):
            if number:
                place = start + 4 * sections * number
                offsets = struct.unpack_from(f"{order}{sections}I", data, place)
                sizes = struct.unpack_from(f"{order}{sections}I", data, place + 4 * sections * units)
                spans = {
                    _CONTRIBUTIONS[column]: slice(offset, offset + size)
                    for column, offset, size in zip(columns, offsets, sizes, strict=True)
                    if column in _CONTRIBUTIONS
                }
                yield _Row(signature, name == _INDICES[0], spans)

    def _of_row(self, number: int) -> DebugFile:
        row = self._rows[number]
        sections = {name: self._sections.get(name, b"")[span] for name, span in row.spans.items()}
        sections[".debug_str"] = self._sections.get(".debug_str", b"")
        first = row.spans.get(_INFO) or row.spans.get(_TYPES) or slice(0, 0)
        return self._file(number, sections, first.start)

    def _file(self, number: int, sections: Mapping[str, bytes], base: int) -> DebugFile:
        if number not in self._files:
            dwarf = _split_dwarf(self._config, sections, self._type_of)
            self._files[number] = DebugFile(self.path, dwarf, self.little_endian, base)
        return self._files[number]

    def _type_of(self, signature: int) -> DIE | None:
        """Return the type with this signature in a package, None if it is not in there."""
        for number, row in enumerate(self._rows):
            if row.signature == signature and not row.is_unit:
                return signed_type(self._of_row(number).dwarf, signature)
        return None


@dataclass(frozen=True)
class _Row:
    """What one unit has contributed to the sections of a package."""

    signature: int
    is_unit: bool
    spans: dict[str, slice]


class _SplitDwarf(DWARFInfo):
    """DWARF that pyelftools reads although what it looks for, or in, is not in the same file."""

    # Where a unit's table of strings begins, which it need not say, as it is the only one.
    strings_base = 0
    type_of: Callable[[int], DIE | None]

    def get_abbrev_table(self, offset: int) -> AbbrevTable:
        """Return the table of abbreviations at this offset, with forms that can be read by themselves."""
        is_new = offset not in self._abbrevtable_cache
        table = super().get_abbrev_table(offset)
        for declaration in table._abbrev_map.values() if is_new else ():
            specs = declaration["attr_spec"]
            for spec in specs:
                spec["form"] = _FORMS.get(spec["form"], spec["form"])
            if declaration["tag"] in _UNITS and self.debug_str_offsets_sec is not None:
                base = Container(name="DW_AT_str_offsets_base", form="DW_FORM_implicit_const")
                base["value"] = self.strings_base
                specs.append(base)
        return table

    def get_DIE_by_sig8(self, sig8: int) -> DIE:  # noqa: N802 (pyelftools' name)
        """Return the type with this signature. Raises ElfViewError if no file has it."""
        found = self.type_of(sig8)
        if found is None:
            raise ElfViewError(
                f"the type with the signature {sig8:#018x} is not in the split debug information"
            )
        return found


def _split_dwarf(
    config: DwarfConfig, sections: Mapping[str, bytes], type_of: Callable[[int], DIE | None]
) -> DWARFInfo:
    found: dict[str, DebugSectionDescriptor | None] = {}
    for parameter in inspect.signature(DWARFInfo).parameters:
        if parameter.endswith("_sec"):
            name = f".{parameter.removesuffix('_sec')}"
            content = sections.get(name, b"")
            section = DebugSectionDescriptor(BytesIO(content), name, 0, len(content), 0)
            found[parameter] = section if content else None
    dwarf = _SplitDwarf(config, **found)
    dwarf.strings_base = _strings_base(config, sections)
    dwarf.type_of = type_of
    return dwarf


def _strings_base(config: DwarfConfig, sections: Mapping[str, bytes]) -> int:
    """Return the size of the header before a table of strings: there is none before DWARF 5."""
    order = "<" if config.little_endian else ">"
    info = sections.get(_INFO) or b""
    if not info:
        return 0
    (length,) = struct.unpack_from(f"{order}I", info)
    is_64 = length == 0xFFFF_FFFF
    (version,) = struct.unpack_from(f"{order}H", info, 12 if is_64 else 4)
    if version < 5:
        return 0
    return 16 if is_64 else 8
