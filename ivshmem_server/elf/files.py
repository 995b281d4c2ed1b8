"""All files with DWARF of one ELF file: its own, a shared one, .dwo files or a package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.file import read_debug_file, read_split_file
from ivshmem_server.elf.dwarf.outline import content
from ivshmem_server.elf.dwarf.split import SplitFile, dwo_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from elftools.dwarf.compileunit import CompileUnit

    from ivshmem_server.elf.dwarf.debug_info import DebugFile

_DWO_NAMES = ("DW_AT_dwo_name", "DW_AT_GNU_dwo_name")
# The number of DW_AT_GNU_dwo_name, as abbreviations spell it.
_GNU_DWO_NAME = b"\xb0\x42"


class DebugFiles:
    """The DWARF of one ELF, file by file. What is split off is looked for and opened when it is needed."""

    def __init__(self, path: Path) -> None:
        """Read the ELF at `path`, or its separate debug file. Raises ElfViewError if there is no DWARF."""
        self.path = path
        self._main = read_debug_file(path)
        # Why the DWARF of some units is not there, as far as they were looked for.
        self.missing: list[str] = []
        self._found: list[DebugFile] | None = None
        self._opened: dict[Path, SplitFile] = {}

    @property
    def little_endian(self) -> bool:
        """Return whether the ELF is."""
        return self._main.little_endian

    def __iter__(self) -> Iterator[DebugFile]:
        if isinstance(self._main, SplitFile):
            yield from self._main
            return
        yield self._main
        shared = self._main.dwarf.supplementary_dwarfinfo
        if shared is not None:
            yield replace(self._main, dwarf=shared)
        if self._found is None:
            self._found = list(self._split_off(self._main))
        yield from self._found

    def _split_off(self, main: DebugFile) -> Iterator[DebugFile]:
        skeletons = list(_skeletons(main))
        package = self._package(main) if skeletons else None
        for skeleton in skeletons:
            found = None if package is None else package.unit(skeleton.dwo_id)
            found = found or self._dwo_file(skeleton)
            if found is not None:
                yield found
        if package is not None:
            yield from package.types()

    def _package(self, main: DebugFile) -> SplitFile | None:
        """Open the package beside the program, if there is one."""
        for program in (self.path, main.path):
            for path in (program.with_name(f"{program.name}.dwp"), program.with_suffix(".dwp")):
                if path.is_file():
                    return read_split_file(path)
        return None

    def _dwo_file(self, skeleton: _Skeleton) -> DebugFile | None:
        """Open the .dwo file of a unit; note why not if there is none."""
        beside = self.path.resolve().parent
        places = [skeleton.path, beside / skeleton.name, beside / Path(skeleton.name).name]
        reason = f"{skeleton.path} is not there"
        for path in filter(Path.is_file, dict.fromkeys(places)):
            try:
                if path not in self._opened:
                    self._opened[path] = read_split_file(path)
                found = self._opened[path].unit(skeleton.dwo_id)
            except ElfViewError as error:
                reason = str(error)
                continue
            if found is not None:
                return found
            reason = f"{path} is of another build"
        self.missing.append(reason)
        return None


@dataclass(frozen=True)
class _Skeleton:
    """A unit of which the program has no more than where the rest is."""

    name: str
    directory: str
    dwo_id: int | None

    @property
    def path(self) -> Path:
        return Path(self.directory, self.name)


def _skeletons(file: DebugFile) -> Iterator[_Skeleton]:
    before_dwarf_5 = _GNU_DWO_NAME in content(file.dwarf.debug_abbrev_sec)
    for unit in file.dwarf.iter_CUs():
        if before_dwarf_5 or unit.header.get("unit_type") == "DW_UT_skeleton":
            name = _text(unit, *_DWO_NAMES)
            if name is not None:
                yield _Skeleton(name, _text(unit, "DW_AT_comp_dir") or "", dwo_id_of(unit))


def _text(unit: CompileUnit, *attributes: str) -> str | None:
    found = unit.get_top_DIE().attributes
    return next(
        (found[name].value.decode("utf-8", "surrogateescape") for name in attributes if name in found), None
    )
