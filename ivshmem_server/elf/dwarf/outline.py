"""The outline of a unit: its entries and their places, without parsing them.

Parsing an entry takes fifteen times as long as passing over it, and few are of interest. A compiler need
not say where the entries below one end (LLVM does not), so that all must be passed to find the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.entries import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from elftools.dwarf.abbrevtable import AbbrevDecl
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
    from elftools.dwarf.typeunit import TypeUnit

    Unit = CompileUnit | TypeUnit

# Sizes of attributes by form (DWARF 5, section 7.5.6), as far as they are the same in all units.
SIZES = {
    "DW_FORM_flag_present": 0,
    "DW_FORM_implicit_const": 0,
    **dict.fromkeys(["DW_FORM_data1", "DW_FORM_ref1", "DW_FORM_flag"], 1),
    **dict.fromkeys(["DW_FORM_data2", "DW_FORM_ref2"], 2),
    **dict.fromkeys(["DW_FORM_data4", "DW_FORM_ref4", "DW_FORM_ref_sup4"], 4),
    **dict.fromkeys(["DW_FORM_data8", "DW_FORM_ref8", "DW_FORM_ref_sig8", "DW_FORM_ref_sup8"], 8),
    "DW_FORM_data16": 16,
    **{f"DW_FORM_{kind}{size}": size for kind in ("strx", "addrx") for size in (1, 2, 3, 4)},
}
_OFFSETS = (
    *("DW_FORM_strp", "DW_FORM_line_strp", "DW_FORM_sec_offset", "DW_FORM_strp_sup"),
    *("DW_FORM_GNU_ref_alt", "DW_FORM_GNU_strp_alt"),
)
# Steps over what is of no fixed size: a number, text, and bytes with their count before them.
_LEB128, _TEXT, _BLOCK, _BLOCK1, _BLOCK2, _BLOCK4 = -1, -2, -3, -4, -5, -6
_STEPS = {
    **dict.fromkeys(["DW_FORM_udata", "DW_FORM_sdata", "DW_FORM_ref_udata", "DW_FORM_strx"], _LEB128),
    **dict.fromkeys(["DW_FORM_addrx", "DW_FORM_loclistx", "DW_FORM_rnglistx"], _LEB128),
    "DW_FORM_string": _TEXT,
    "DW_FORM_block": _BLOCK,
    "DW_FORM_exprloc": _BLOCK,
    "DW_FORM_block1": _BLOCK1,
    "DW_FORM_block2": _BLOCK2,
    "DW_FORM_block4": _BLOCK4,
}
_NOTHING = -1
_COUNT_SIZES = {_BLOCK1: 1, _BLOCK2: 2, _BLOCK4: 4}
# What defines types and variables, and what these have names in.
_SCOPES = frozenset({"DW_TAG_namespace", "DW_TAG_module", "DW_TAG_subprogram", "DW_TAG_interface_type"})
_KEPT = frozenset(KINDS) | _SCOPES | {"DW_TAG_variable"}


def content(section: DebugSectionDescriptor | None) -> bytes:
    """Return all bytes of a section, none if the ELF does not have it."""
    if section is None:
        return b""
    section.stream.seek(0)
    return section.stream.read()


def forms_of(declaration: AbbrevDecl) -> dict[str, str]:
    """Return the forms of the attributes that entries of this abbreviation have, in order."""
    return {spec.name: spec.form for spec in declaration["attr_spec"]}


class _Plan:
    """How to pass over the entries of one abbreviation."""

    __slots__ = ("has_children", "is_kept", "name_form", "name_gap", "steps", "tag")

    def __init__(self, declaration: AbbrevDecl, sizes: Mapping[str, int]) -> None:
        self.tag = str(declaration["tag"])
        self.has_children = declaration.has_children()
        forms = forms_of(declaration)
        # Before DWARF 5, static members of a class are declared as members.
        self.is_kept = self.tag in _KEPT or (self.tag == "DW_TAG_member" and "DW_AT_declaration" in forms)
        # Bytes to skip where that is known, else a step; none if only parsing the entry tells.
        self.steps: list[int] | None = []
        # What comes before the name, in bytes, if that is known.
        self.name_gap: int | None = None
        self.name_form = forms.get("DW_AT_name")
        for attribute, form in forms.items():
            fixed = not self.steps or (len(self.steps) == 1 and self.steps[0] >= 0)
            if attribute == "DW_AT_name" and fixed:
                self.name_gap = sum(self.steps)
            step = sizes.get(form, _STEPS.get(form))
            if step is None:
                self.steps = None
                return
            if step >= 0 and self.steps and self.steps[-1] >= 0:
                self.steps[-1] += step
            else:
                self.steps.append(step)


class Outline:
    """The entries of one unit that define types and variables, and that are scopes of these."""

    def __init__(self, unit: Unit) -> None:
        """Go through the unit once. Raises ElfViewError if it is damaged."""
        stream = unit.get_top_DIE().stream
        stream.seek(0)
        self._data = stream.read()
        # By offset, in their order: the offset of the entry around each, and its abbreviation.
        self._entries: dict[int, tuple[int, _Plan]] = {}
        try:
            self._scan(unit)
        except (IndexError, KeyError, ValueError) as error:
            raise ElfViewError("the debug information is damaged: a unit ends within an entry") from error

    def around(self, offset: int) -> int | None:
        """Return the offset of the scope around the entry at this offset, None if that is the unit."""
        found, _ = self._entries.get(offset, (_NOTHING, None))
        return None if found == _NOTHING else found

    def offsets(self, tags: frozenset[str], names: Mapping[str, list[bytes]] | None = None) -> Iterator[int]:
        """Yield where the entries with one of these tags begin, in their order.

        `names` says by form what stands in the place of a name that is looked for. Entries whose names are
        seen to be others are left out.
        """
        for offset, (_, plan) in self._entries.items():
            if plan.tag in tags and (names is None or self._may_be_named(offset, plan, names)):
                yield offset

    def _may_be_named(self, offset: int, plan: _Plan, names: Mapping[str, list[bytes]]) -> bool:
        if plan.name_form is None:
            # It may complete another entry, which has the name.
            return True
        if plan.name_gap is None or plan.name_form not in names:
            return True
        start = _step(self._data, offset, _LEB128, "little") + plan.name_gap
        return any(self._data.startswith(name, start) for name in names[plan.name_form])

    def _scan(self, unit: Unit) -> None:
        data, entries = self._data, self._entries
        position, end = unit.cu_die_offset, unit.cu_offset + unit.size
        plans = _Plans(unit)
        order: Literal["little", "big"] = "little" if unit.dwarfinfo.config.little_endian else "big"
        # The entries around the next one; in the place of one that is not kept, the one around that.
        around = [_NOTHING]
        while position < end:
            offset = position
            code, position = (
                _leb128(data, position) if data[position] & 0x80 else (data[position], position + 1)
            )
            if code:
                plan = plans[code]
                if plan.is_kept:
                    entries[offset] = (around[-1], plan)
                if plan.steps is None:
                    position = offset + unit.get_DIE_from_refaddr(offset).size
                else:
                    for step in plan.steps:
                        position = position + step if step >= 0 else _step(data, position, step, order)
                if plan.has_children:
                    around.append(offset if plan.is_kept else around[-1])
            else:
                around.pop()
            if len(around) == 1:
                return


class _Plans(dict[int, _Plan]):
    """The plans by the codes of their abbreviations, each made when it is first met."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self._abbreviations = unit.get_abbrev_table()
        offset_size, address_size = unit.structs.dwarf_format // 8, unit["address_size"]
        self._sizes = {
            **SIZES,
            **dict.fromkeys(_OFFSETS, offset_size),
            "DW_FORM_addr": address_size,
            "DW_FORM_ref_addr": address_size if unit["version"] == 2 else offset_size,
        }

    def __missing__(self, code: int) -> _Plan:
        self[code] = plan = _Plan(self._abbreviations.get_abbrev(code), self._sizes)
        return plan


# An outline does not refer to its unit, which goes when nothing else does.
_outlines: WeakKeyDictionary[Unit, Outline] = WeakKeyDictionary()


def outline_of(unit: Unit) -> Outline:
    """Return the outline of a unit, made once. Raises ElfViewError if the unit is damaged."""
    if unit not in _outlines:
        _outlines[unit] = Outline(unit)
    return _outlines[unit]


def _step(data: bytes, position: int, step: int, order: Literal["little", "big"]) -> int:
    """Return where the attribute that begins at `position` ends."""
    if step == _LEB128:
        while data[position] & 0x80:
            position += 1
        return position + 1
    if step == _TEXT:
        return data.index(0, position) + 1
    if step == _BLOCK:
        count, position = _leb128(data, position)
        return position + count
    size = _COUNT_SIZES[step]
    return position + size + int.from_bytes(data[position : position + size], order)


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return the number of 7 bits a byte that begins at `position`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7


def entries(
    unit: Unit, tags: frozenset[str], names: Mapping[str, list[bytes]] | None = None
) -> Iterator[DIE]:
    """Yield the entries of a unit with one of these tags, parsed; `names` as for `Outline.offsets`."""
    return map(unit.get_DIE_from_refaddr, outline_of(unit).offsets(tags, names))
