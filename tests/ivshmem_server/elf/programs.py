"""C programs for the tests of the ELF view: compiled at test time, their initialised objects read back."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.render import Json, to_json
from ivshmem_server.elf.lookup import load_types

if TYPE_CHECKING:
    from pathlib import Path

DWARF_VERSIONS = (2, 3, 4, 5)
# Linking needs no C library for data.
_LINKED = ("-nostdlib", "-static", "-Wl,-e,0")


@dataclass(frozen=True)
class Compiler:
    """A C compiler with the options that choose its target."""

    name: str
    command: tuple[str, ...]
    # Whether its objects have relocations that pyelftools does not know: then the linker applies them.
    must_link: bool = False

    def __str__(self) -> str:
        return self.name

    def compile(self, directory: Path, source: str, *options: str, linked: bool = False) -> Path:
        """Compile C with debug information, to an object or a program without code of its own to start."""
        kind = _LINKED if linked or self.must_link else ("-c",)
        return self._run(directory, {"program.c": source}, *kind, *options)

    def link(self, directory: Path, sources: dict[str, str], *options: str) -> Path:
        """Compile and link C files, by name, to a program without code of its own to start."""
        return self._run(directory, sources, *_LINKED, *options)

    def assemble(self, directory: Path, source: str) -> Path:
        """Assemble an object whose debug information is written out in the source."""
        return self._run(directory, {"program.s": source}, "-c", "-g0")

    def _run(self, directory: Path, sources: dict[str, str], *options: str) -> Path:
        for name, source in sources.items():
            (directory / name).write_text(source)
        command = [*self.command, "-g", "-w", *options, "-o", "program", *sources]
        subprocess.run(command, cwd=directory, check=True, timeout=60, capture_output=True)
        return directory / "program"


GCC = Compiler("gcc", ("gcc",))


def compile_rust(directory: Path, source: str, *options: str) -> Path:
    """Compile a Rust library with debug information to an object; skip the test where there is no rustc."""
    return _compile_rust(directory, source, "program.o", "--crate-type=lib", "--emit=obj", *options)


def compile_rust_program(directory: Path, source: str, *options: str) -> Path:
    """Compile and link a Rust program with debug information; skip the test where there is no rustc."""
    return _compile_rust(directory, source, "program", *options)


def _compile_rust(directory: Path, source: str, made: str, *options: str) -> Path:
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    (directory / "program.rs").write_text(source)
    command = ["rustc", "--edition=2021", "-Awarnings", "-g", *options, "-o", made, "program.rs"]
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environment, check=False, timeout=60, stderr=subprocess.PIPE, text=True
    )
    if "unknown codegen option" in done.stderr:
        pytest.skip(f"this rustc does not know {' '.join(options)}")
    assert done.returncode == 0, done.stderr
    return directory / made


def compile_cxx(directory: Path, source: str, *options: str) -> Path:
    """Compile C++ with debug information to an object; skip the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (directory / "program.cc").write_text(source)
    command = ["g++", "-std=c++20", "-g", "-w", "-c", *options, "-o", "program.o", "program.cc"]
    subprocess.run(command, cwd=directory, check=True, timeout=60)
    return directory / "program.o"


def _optional() -> list[Compiler]:
    """Return the compilers beside the machine's gcc that are installed."""
    found = []
    for target in ("powerpc-linux-gnu", "s390x-linux-gnu"):
        for program in (f"{target}-gcc", f"{target}-gcc-12"):
            if shutil.which(program):
                found.append(Compiler(target, (program,), must_link=target.startswith("powerpc")))
                break
    for program in filter(shutil.which, ("clang", "clang-14")):
        found += [
            Compiler(program, (program,)),
            Compiler(f"{program}-mips64", (program, "--target=mips64-linux-gnu")),
        ]
    return found


# A compiler for the machine's 32-bit sibling needs no 32-bit C library as long as nothing is linked.
COMPILERS = [GCC, Compiler("gcc-m32", ("gcc", "-m32")), *_optional()]


def object_bytes(path: Path, name: str) -> bytes:
    """Return the initial value of a global variable, as the compiler wrote it."""
    with ELFFile.load_from_path(str(path)) as elf:
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        (symbol,) = symbols.get_symbol_by_name(name) or []
        section = elf.get_section(symbol["st_shndx"])
        start = symbol["st_value"] - section["sh_addr"]
        return section.data()[start : start + symbol["st_size"]]


def decoded(path: Path, type_name: str, variable: str) -> Json:
    """Return a variable of an ELF as the ELF view decodes it."""
    return to_json(decode(load_types(path).find(type_name), object_bytes(path, variable)))
