"""Damaged ELFs: whatever the bytes are, the ELF view works or says why not, in one line."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.ctypes.render import render
from ivshmem_server.elf.lookup import load_types
from tests.ivshmem_server.elf.programs import GCC, compile_rust

SOURCE = """
enum state { IDLE, BUSY };
struct point { int x, y; };
struct ring {
    struct point points[2][3]; enum state state; unsigned low : 3; char name[8]; struct ring *next;
    union { float f; double d; }; struct point tail[];
} ring;
"""
INDICES = [".debug_cu_index", ".debug_tu_index", ".shstrtab"]
RUST = """
pub enum Shape { Empty, Circle(u32), Rect { w: u16, h: u16 } }
pub struct ring { pub shape: Shape, pub number: Option<&'static u32>, pub unit: () }
pub static RING: ring = ring { shape: Shape::Circle(7), number: None, unit: () };
"""
SECTIONS = [".debug_info", ".debug_abbrev", ".debug_str", ".debug_str_offsets", ".debug_types"]


@dataclass(frozen=True)
class Sound:
    """An ELF that can be read, and where in it something is said about types."""

    content: bytes
    places: list[int]


def sound(path: Path) -> Sound:
    names = [f"{kind}{name}{end}" for kind in ("", ".rela") for name in SECTIONS for end in ("", ".dwo")]
    with ELFFile.load_from_path(str(path)) as file:
        found = [section for section in map(file.get_section_by_name, names + INDICES) if section is not None]
        spans = [range(section["sh_offset"], section["sh_offset"] + section["sh_size"]) for section in found]
        headers = range(file["e_shoff"], file["e_shoff"] + file["e_shnum"] * file["e_shentsize"])
    return Sound(path.read_bytes(), [place for span in [range(64), headers, *spans] for place in span])


@pytest.fixture(scope="module", params=["object", "dwo4", "dwo5", "package", "rust"])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    directory = tmp_path_factory.mktemp("elf")
    if request.param == "rust":
        return sound(compile_rust(directory, RUST))
    if request.param == "object":
        return sound(GCC.compile(directory, SOURCE))
    version = "5" if request.param == "dwo5" else "4"
    options = [f"-gdwarf-{version}", "-gsplit-dwarf", "-dumpdir", "", "-fdebug-types-section"]
    path = GCC.link(directory, {"program.c": SOURCE}, *options)
    if request.param != "package":
        return sound(directory / "program.dwo")
    if shutil.which("dwp") is None:
        pytest.skip("dwp is not installed")
    subprocess.run(["dwp", "-e", path, "-o", "program.dwp"], cwd=directory, check=True, timeout=60)
    return sound(directory / "program.dwp")


def use(path: Path) -> None:
    for name in ("struct ring", "enum state", "Shape", "a::rign"):
        try:
            render(decode(load_types(path).find(name), bytes(4096)))
        except ElfViewError as error:
            complaint = str(error)
        else:
            complaint = ""
        assert "\n" not in complaint


# Each example is looked through four times.
@settings(max_examples=max(settings().max_examples // 2, 1))
@given(data=st.data())
def test_damage_is_an_elf_view_error(elf: Sound, data: st.DataObject) -> None:
    content = bytearray(elf.content)
    for _ in range(data.draw(st.integers(1, 4), "number of changes")):
        place = data.draw(st.sampled_from(elf.places), "place")
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255), "byte")
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        use(Path(file.name))


@settings(max_examples=max(settings().max_examples // 2, 1))
@given(length=st.integers(0, 1 << 14))
def test_cut_off_file(elf: Sound, length: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(elf.content[:length])
        use(Path(file.name))
