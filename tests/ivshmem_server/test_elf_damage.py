"""Damaged ELFs: whatever the bytes are, the ELF view works or says why not, in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from ivshmem_server.elf_decode import decode
from ivshmem_server.elf_model import ElfViewError
from ivshmem_server.elf_render import render
from ivshmem_server.elf_types import load_types
from tests.ivshmem_server.elf_programs import GCC

SOURCE = """
enum state { IDLE, BUSY };
struct point { int x, y; };
struct ring {
    struct point points[2][3]; enum state state; unsigned low : 3; char name[8]; struct ring *next;
    union { float f; double d; }; struct point tail[];
} ring;
"""
SECTIONS = [".debug_info", ".debug_abbrev", ".debug_str", ".rela.debug_info", ".shstrtab"]


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GCC.compile(tmp_path_factory.mktemp("elf"), SOURCE)


@pytest.fixture(scope="module")
def places(elf: Path) -> list[int]:
    """Where in the file something is said about types."""
    with ELFFile.load_from_path(str(elf)) as file:
        sections = [section for section in map(file.get_section_by_name, SECTIONS) if section is not None]
        spans = [
            range(section["sh_offset"], section["sh_offset"] + section["sh_size"]) for section in sections
        ]
        headers = range(file["e_shoff"], file["e_shoff"] + file["e_shnum"] * file["e_shentsize"])
    return [place for span in [range(64), headers, *spans] for place in span]


def use(path: Path) -> None:
    for name in ("struct ring", "enum state", "rign"):
        try:
            render(decode(load_types(path).find(name), bytes(4096)))
        except ElfViewError as error:
            complaint = str(error)
        else:
            complaint = ""
        assert "\n" not in complaint


@given(data=st.data())
def test_damage_is_an_elf_view_error(elf: Path, places: list[int], data: st.DataObject) -> None:
    content = bytearray(elf.read_bytes())
    for _ in range(data.draw(st.integers(1, 4), "number of changes")):
        place = data.draw(st.sampled_from(places), "place")
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255), "byte")
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(content)
        use(Path(file.name))


@given(length=st.integers(0, 1 << 14))
def test_cut_off_file(elf: Path, length: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(elf.read_bytes()[:length])
        use(Path(file.name))
