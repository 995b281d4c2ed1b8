"""What an ELF may be: the ways to carry debug information that are read, and a remedy for the others."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from elftools.elf.relocation import RelocationHandler

from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.dwarf import file as elf_file
from ivshmem_server.elf.lookup import load_types
from tests.ivshmem_server.elf.programs import GCC, decoded

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
typedef unsigned u32;
struct point { u32 x, y; };
struct ring { struct point points[2]; struct ring *next; } ring = { { { 1, 2 }, { 3, 4 } }, (void *)5 };
"""
RING = {"points": [{"x": 1, "y": 2}, {"x": 3, "y": 4}], "next": 5}


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=60, capture_output=True)


def refusal(path: Path, name: str = "struct ring") -> str:
    with pytest.raises(ElfViewError) as caught:
        load_types(path).find(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        ["-c"],
        ["-c", "-gz=zlib"],
        ["-c", "-flto", "-ffat-lto-objects"],
        ["-c", "-gdwarf64", "-gdwarf-3"],
        ["-c", "-gdwarf64", "-gdwarf-5"],
        ["-shared"],
        ["-gz=zlib"],
        ["-flto"],
        ["-c", "-fdebug-types-section", "-gdwarf-4"],
        ["-c", "-fdebug-types-section", "-gdwarf-5"],
        ["-fdebug-types-section", "-gdwarf-4"],
        ["-fdebug-types-section", "-gdwarf-5"],
        ["-Wl,-r"],
    ],
    ids=" ".join,
)
def test_debug_information_that_is_read(tmp_path: Path, options: list[str]) -> None:
    path = GCC.compile(tmp_path, SOURCE, *options, linked="-c" not in options)
    assert decoded(path, "struct ring", "ring") == RING


def test_relocations_that_the_linker_has_applied_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel keeps ten million of them, which would take minutes."""
    path = GCC.compile(tmp_path, SOURCE, "-Wl,--emit-relocs", linked=True)
    monkeypatch.setattr(RelocationHandler, "apply_section_relocations", pytest.fail)
    assert decoded(path, "struct ring", "ring") == RING


def test_stripped_program_is_followed_by_its_debug_link(tmp_path: Path) -> None:
    path = GCC.compile(tmp_path, SOURCE, linked=True)
    debug = tmp_path / ".debug" / "program.debug"
    debug.parent.mkdir()
    run("objcopy", "--only-keep-debug", path, debug)
    run("objcopy", "--strip-debug", f"--add-gnu-debuglink={debug}", path)
    assert decoded(path, "struct ring", "ring") == RING
    debug.write_bytes(debug.read_bytes() + b"\0")
    assert "was stripped and its debug file program.debug is not there" in refusal(path)


def test_stripped_program_is_followed_by_its_build_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = GCC.compile(tmp_path, SOURCE, "-Wl,--build-id=0xabcdef", linked=True)
    debug = tmp_path / "root" / ".build-id" / "ab" / "cdef.debug"
    debug.parent.mkdir(parents=True)
    run("objcopy", "--only-keep-debug", path, debug)
    run("objcopy", "--strip-debug", path)
    assert "has no debug information" in refusal(path)
    monkeypatch.setattr(elf_file, "_DEBUG_ROOT", tmp_path / "root")
    assert decoded(path, "struct ring", "ring") == RING


def test_debug_file_shared_by_several(tmp_path: Path) -> None:
    if shutil.which("dwz") is None:
        pytest.skip("dwz is not installed")
    paths = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths.append(GCC.compile(tmp_path / name, SOURCE, linked=True))
    run("dwz", "--multifile", tmp_path / "shared", "--relative", *paths)
    assert [decoded(path, "struct ring", "ring") for path in paths] == [RING, RING]
    (tmp_path / "shared").unlink()
    assert "shares debug information with ../shared, which cannot be read" in refusal(paths[0])


def test_stripped_program(tmp_path: Path) -> None:
    path = GCC.compile(tmp_path, SOURCE, linked=True)
    run("strip", path)
    assert refusal(path) == f"{path} has no debug information: compile it with -g, and do not strip it"


def test_lto_object(tmp_path: Path) -> None:
    assert "compiled with -flto: give the linked program" in refusal(GCC.compile(tmp_path, SOURCE, "-flto"))


@pytest.mark.parametrize("kind", ["zlib-gnu", "zstd"])
def test_compression_that_is_not_supported_names_its_remedy(tmp_path: Path, kind: str) -> None:
    path = GCC.compile(tmp_path, SOURCE, linked=True)
    compressed = subprocess.run(
        ["objcopy", f"--compress-debug-sections={kind}", path], check=False, capture_output=True
    )
    if compressed.returncode:
        pytest.skip(f"objcopy cannot compress with {kind}")
    assert f"run `objcopy --decompress-debug-sections {path}`" in refusal(path)
    run("objcopy", "--decompress-debug-sections", path)
    assert decoded(path, "struct ring", "ring") == RING


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_files_that_are_no_elf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_path_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: No such file or directory"
