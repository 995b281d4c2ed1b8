"""Split DWARF: .dwo files and .dwp packages, as gcc, binutils, LLVM and rustc make them."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.lookup import load_types
from tests.ivshmem_server.elf.programs import GCC, compile_rust_program, decoded

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = {
    "a.c": """
        typedef unsigned u32;
        struct point { u32 x, y; };
        struct ring { struct point points[2]; struct ring *next; };
        struct ring ring = { { { 1, 2 }, { 3, 4 } }, (void *)5 };
    """,
    "b.c": "enum state { IDLE, BUSY = 7 }; struct other { long a; enum state state; } other = { -3, BUSY };",
}
RING = {"points": [{"x": 1, "y": 2}, {"x": 3, "y": 4}], "next": 5}
OTHER = {"a": -3, "state": "BUSY"}
RUST = """
mod wire { pub enum Shape { Empty, Circle(u32) } pub struct All { pub shape: Shape, pub tail: u16 } }
#[no_mangle] pub static ALL: wire::All = wire::All { shape: wire::Shape::Circle(77), tail: 5 };
fn main() { println!("{}", ALL.tail); }
"""


def program(directory: Path, *options: str) -> Path:
    return GCC.link(directory, SOURCES, "-gsplit-dwarf", "-dumpdir", "", *options)


def package(path: Path, tool: str) -> Path:
    """Make a package of a program's .dwo files, and remove these."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    made = path.with_name(f"{path.name}.dwp")
    subprocess.run([tool, "-e", path, "-o", made], cwd=path.parent, check=True, timeout=60)
    for file in path.parent.glob("*.dwo"):
        file.unlink()
    return made


def refusal(path: Path, name: str) -> str:
    with pytest.raises(ElfViewError) as caught:
        load_types(path).find(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


OPTIONS = [
    ["-gdwarf-4"],
    ["-gdwarf-5"],
    ["-gdwarf-4", "-fdebug-types-section"],
    ["-gdwarf-5", "-fdebug-types-section"],
    ["-gdwarf-5", "-gdwarf64"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_dwo_files(tmp_path: Path, options: list[str]) -> None:
    path = program(tmp_path, *options)
    assert decoded(path, "struct ring", "ring") == RING
    assert decoded(path, "other", "other") == OTHER
    assert load_types(path).find_variable("ring").size == 24
    assert load_types(tmp_path / "a.dwo").find("ring").size == 24
    assert "has no other" in refusal(tmp_path / "a.dwo", "other")


@pytest.mark.parametrize(
    "options", [options for options in OPTIONS if "-gdwarf64" not in options], ids=" ".join
)
@pytest.mark.parametrize("tool", ["dwp", "llvm-dwp"])
def test_package(tmp_path: Path, options: list[str], tool: str) -> None:
    if tool == "dwp" and "-gdwarf-5" in options:
        pytest.skip("binutils' dwp knows no DWARF 5")
    path = program(tmp_path, *options)
    made = package(path, tool)
    for elf in (path, made):
        types = load_types(elf)
        assert (types.find("struct ring").size, types.find("other").size) == (24, 16)
    assert decoded(path, "struct ring", "ring") == RING
    assert decoded(path, "other", "other") == OTHER


def test_program_and_its_dwo_files_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    program(tmp_path / "built")
    (tmp_path / "built").rename(tmp_path / "installed")
    assert decoded(tmp_path / "installed" / "program", "struct ring", "ring") == RING


def test_missing_dwo_file_is_named(tmp_path: Path) -> None:
    path = program(tmp_path)
    (tmp_path / "a.dwo").unlink()
    assert refusal(path, "struct ring") == (
        f"{path} has no struct ring: its debug information was split off, and {tmp_path}/a.dwo is not there: "
        "build it again, put it beside the program, or make a package with `dwp -e`"
    )
    assert decoded(path, "other", "other") == OTHER
    types = load_types(path)
    types.find("other")
    assert f"{tmp_path}/a.dwo is not there" in (types.warning or "")


def test_dwo_file_of_another_build(tmp_path: Path) -> None:
    path = program(tmp_path)
    shutil.copy(tmp_path / "b.dwo", tmp_path / "a.dwo")
    assert f"{tmp_path}/a.dwo is of another build" in refusal(path, "struct ring")
    (tmp_path / "a.dwo").write_bytes(b"junk")
    assert f"{tmp_path}/a.dwo is no ELF file" in refusal(path, "struct ring")


def test_types_of_one_name_in_two_dwo_files(tmp_path: Path) -> None:
    """The units, lines and offsets of a source compiled twice are the same: the file is what is left."""
    (tmp_path / "part.c").write_text("struct item { char name[SIZE]; } NAME;\n")
    objects = []
    for name, size in (("a", 8), ("b", 9)):
        options = ["-g", "-c", "-gsplit-dwarf", f"-DSIZE={size}", f"-DNAME={name}", "-o", f"{name}.o"]
        subprocess.run(["gcc", *options, "part.c"], cwd=tmp_path, check=True, timeout=60)
        objects.append(f"{name}.o")
    linked = ["gcc", "-nostdlib", "-static", "-Wl,-e,0", "-o", "program", *objects]
    subprocess.run(linked, cwd=tmp_path, check=True, timeout=60)
    types = load_types(tmp_path / "program")
    with pytest.raises(ElfViewError) as caught:
        types.find("item")
    choices = [choice for choice in str(caught.value).split("'") if "@" in choice]
    assert [choice.split(":")[0] for choice in choices] == ["struct item@a.dwo", "struct item@b.dwo"]
    assert [types.find(choice).size for choice in choices] == [8, 9]


@pytest.mark.parametrize("options", [[], ["-Cdwarf-version=5"]], ids=["", "dwarf5"])
@pytest.mark.parametrize("split", ["unpacked", "packed"])
def test_rust(tmp_path: Path, split: str, options: list[str]) -> None:
    path = compile_rust_program(tmp_path, RUST, f"-Csplit-debuginfo={split}", *options)
    assert list(tmp_path.glob("*.dwp" if split == "packed" else "*.dwo"))
    assert decoded(path, "wire::All", "ALL") == {"shape": {"Circle": {"__0": 77}}, "tail": 5}
    assert load_types(path).find_variable("ALL").name == "program::wire::All"
