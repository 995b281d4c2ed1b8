"""From the path of an ELF file to its DWARF, in the file or where its debug link points."""

from __future__ import annotations

import zlib
from collections import Counter
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from elftools.common.exceptions import ELFError
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationHandler, RelocationSection

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf.debug_info import DebugFile
from ivshmem_server.elf.dwarf.split import SplitFile, is_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from elftools.dwarf.dwarfinfo import DWARFInfo

# Where distributions put the debug files of their packages.
_DEBUG_ROOT = Path("/usr/lib/debug")


def read_debug_file(path: Path) -> DebugFile | SplitFile:
    """Read the DWARF that belongs to the ELF at `path`, which may be what was split off one.

    A stripped ELF is followed to its separate debug file, by build id or debug link, in the places gdb
    searches. Raises ElfViewError, which names the remedy, if there is no DWARF to be had.
    """
    with refusing(path), path.open("rb") as stream:
        elf = _open_elf(path, stream)
        if elf.has_dwarf_info(strict=True):
            return _read_dwarf(path, elf)
        if is_split(elf):
            return SplitFile(path, elf)
        separate = _separate_file(path, elf)
        if separate is None:
            raise ElfViewError(_why_none(path, elf))
    with refusing(separate), separate.open("rb") as stream:
        return _read_dwarf(separate, _open_elf(separate, stream))


def read_split_file(path: Path) -> SplitFile:
    """Read a .dwo or .dwp file. Raises ElfViewError if it is none."""
    with refusing(path), path.open("rb") as stream:
        elf = _open_elf(path, stream)
        if not is_split(elf):
            raise ElfViewError(f"{path} holds no split debug information")
        return SplitFile(path, elf)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while reading `path` into an ElfViewError of one line.

    A damaged ELF makes the parser fail in any way at all, not only with its own exceptions.
    """
    try:
        yield
    except ElfViewError:
        raise
    except OSError as error:
        raise ElfViewError(f"{path}: {error.strerror}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ElfViewError(
            f"{path}: the debug information is damaged, or of a kind that is not supported ({reason[:160]}); "
            "`readelf --debug-dump=info` shows whether it is sound"
        ) from error


def _open_elf(path: Path, stream: IO[bytes]) -> ELFFile:
    if stream.read(4) != b"\x7fELF":
        raise ElfViewError(f"{path} is no ELF file: give the program, library, object or kernel module")
    return ELFFile(stream, _opener_of_shared_debug_files(path))


def _opener_of_shared_debug_files(path: Path) -> Callable[[str], IO[bytes]]:
    """Return what opens the file that several debug files share (.gnu_debugaltlink, made by dwz)."""

    def open_shared(name: str) -> IO[bytes]:
        try:
            return (path.resolve().parent / name).open("rb")
        except OSError as error:
            raise ElfViewError(
                f"{path} shares debug information with {name}, which cannot be read ({error.strerror}): "
                "install the package that holds it"
            ) from error

    return open_shared


def _read_dwarf(path: Path, elf: ELFFile) -> DebugFile:
    counts = Counter(section.name for section in elf.iter_sections())
    if counts[".zdebug_info"] and any(name.startswith(".debug_") for name in counts):
        raise ElfViewError(_compressed(path))
    # Only an object has relocations still to be applied. A kernel built with --emit-relocs keeps millions
    # of them beside debug sections where they were applied long ago.
    relocate = elf["e_type"] == "ET_REL"
    is_spread = counts[".debug_info"] > 1 or counts[".debug_types"] > 1
    try:
        dwarf = _joined_dwarf(elf) if is_spread else elf.get_dwarf_info(relocate_dwarf_sections=relocate)
    except ELFError as error:
        raise ElfViewError(_unreadable(path, elf, counts, str(error))) from error
    except AssertionError as error:
        raise ElfViewError(_unreadable(path, elf, counts, "")) from error
    return DebugFile(path, dwarf, elf.little_endian)


def _joined_dwarf(elf: ELFFile) -> DWARFInfo:
    """Return the DWARF of an object with a section of its own for each type unit (-fdebug-types-section)."""
    dwarf = elf.get_dwarf_info(relocate_dwarf_sections=False)
    dwarf.debug_info_sec = _joined(elf, ".debug_info")
    dwarf.debug_types_sec = _joined(elf, ".debug_types")
    dwarf.debug_line_sec = _joined(elf, ".debug_line")
    dwarf.debug_str_offsets_sec = _joined(elf, ".debug_str_offsets")
    return dwarf


def _joined(elf: ELFFile, name: str) -> DebugSectionDescriptor | None:
    """Return all sections of this name as one, relocated: pyelftools takes the relocations of another."""
    relocations = {
        section["sh_info"]: section
        for section in elf.iter_sections()
        if isinstance(section, RelocationSection)
    }
    joined = BytesIO()
    for number, section in enumerate(elf.iter_sections()):
        if section.name == name:
            stream = BytesIO(section.data())
            if number in relocations:
                RelocationHandler(elf).apply_section_relocations(stream, relocations[number])
            joined.write(stream.getvalue())
    size = joined.tell()
    return DebugSectionDescriptor(joined, name, 0, size, 0) if size else None


def _unreadable(path: Path, elf: ELFFile, counts: Counter[str], reason: str) -> str:
    if counts[".zdebug_info"] or "ompress" in reason:
        return _compressed(path)
    if "elocation" in reason:
        machine = elf.get_machine_arch()
        return f"{path}: objects for {machine} are not supported: give the linked program"
    return f"{path}: the debug information cannot be read ({' '.join(reason.split())[:160]})"


def _compressed(path: Path) -> str:
    return (
        f"{path}: the debug sections are compressed in a way that is not supported: "
        f"run `objcopy --decompress-debug-sections {path}`"
    )


def _why_none(path: Path, elf: ELFFile) -> str:
    if elf.has_section(".gnu.debuglto_.debug_info"):
        return f"{path} is an object compiled with -flto: give the linked program, or compile with -fno-lto"
    link = elf.get_dwarf_link()
    if link is not None:
        name = bytes(link.filename).decode("utf-8", "replace")
        return (
            f"{path} was stripped and its debug file {name} is not there: "
            "give that file, or install the package that holds it (-dbgsym, -debuginfo)"
        )
    return f"{path} has no debug information: compile it with -g, and do not strip it"


def _separate_file(path: Path, elf: ELFFile) -> Path | None:
    """Return the debug file of a stripped ELF: by build id first, which cannot name a wrong one."""
    by_id = _by_build_id(elf)
    if by_id is not None:
        return by_id
    link = elf.get_dwarf_link()
    if link is None:
        return None
    name = bytes(link.filename).decode("utf-8", "surrogateescape")
    directory = path.resolve().parent
    places = (directory, directory / ".debug", _DEBUG_ROOT / directory.relative_to("/"))
    return next((place / name for place in places if _has_checksum(place / name, link.checksum)), None)


def _by_build_id(elf: ELFFile) -> Path | None:
    note = elf.get_section_by_name(".note.gnu.build-id")
    if note is None:
        return None
    # The description of the only note in there follows 12 bytes of header and the name "GNU\0".
    build_id = note.data()[16:].hex()
    found = _DEBUG_ROOT / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    return found if found.is_file() else None


def _has_checksum(path: Path, checksum: int) -> bool:
    return path.is_file() and zlib.crc32(path.read_bytes()) == checksum
