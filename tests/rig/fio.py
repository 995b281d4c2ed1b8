"""fio for the guest: Debian's own, with the libraries that it really uses and stand-ins for the others.

Debian's fio is linked with those of storage clusters and of remote memory too, 100 megabytes of
them, which a guest's disk needs none of. The stand-ins have their names and symbols, and a symbol
that is called ends the program.
"""

from __future__ import annotations

import hashlib
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from tests.rig import packages
from tests.rig.apt import run
from tests.rig.cpio import Archive

PROGRAM = "bin/fio"
_LIBRARIES = "lib/x86_64-linux-gnu"
_LOADER = "lib64/ld-linux-x86-64.so.2"


def archive() -> Path:
    """Return the cpio archive of `files()`; build it first if it is new. Raises SetupError."""
    sources = (Path(__file__), Path(__file__).with_name("cpio.py"))
    fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    root = packages.fio_root()
    built = packages.cache() / f"fio-{fingerprint}.cpio"
    if not built.exists():
        packages.say("building the guest's fio")
        written = Archive()
        for path, content in files(root).items():
            written.file(path, content, executable=True)
        with tempfile.TemporaryDirectory(dir=packages.cache(), prefix="fio-") as scratch:
            whole = Path(scratch, built.name)
            whole.write_bytes(written.finish())
            whole.rename(built)
        for old in set(packages.cache().glob("fio-*.cpio")) - {built}:
            old.unlink(missing_ok=True)
    return built


def files(root: Path) -> dict[str, bytes]:
    """Return what a machine needs to run fio, by path: PROGRAM, the loader, the libraries.

    `root` is packages.fio_root(). Raises SetupError.
    """
    program = (root / "usr/bin/fio").read_bytes()
    found = {PROGRAM: program, _LOADER: _fetched(root, Path(_LOADER).name)}
    wanted = _needed(program)
    while wanted:
        path = f"{_LIBRARIES}/{(name := wanted.pop())}"
        if path not in found and name != Path(_LOADER).name:
            found[path] = _fetched(root, name)
            wanted += _needed(found[path])
    absent = [name for name in _needed(program) if not found[f"{_LIBRARIES}/{name}"]]
    present = set().union(*map(_defined, found.values()))
    for name, symbols in _symbols(program, absent, present).items():
        found[f"{_LIBRARIES}/{name}"] = _stand_in(name, symbols)
    return found


def _fetched(root: Path, name: str) -> bytes:
    """Return the library `name`; nothing for one that was not fetched."""
    paths = [path for path in root.rglob(name) if path.exists()]
    return paths[0].read_bytes() if paths else b""


def _needed(binary: bytes) -> list[str]:
    """Return the names of the libraries that an ELF file asks for."""
    if not binary or (dynamic := _section(binary, ".dynamic")) is None:
        return []
    return [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]


def _defined(binary: bytes) -> set[str]:
    """Return the names of the symbols that an ELF file has for others."""
    symbols = _section(binary, ".dynsym").iter_symbols() if binary else ()
    return {symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"}


def _section(binary: bytes, name: str) -> Any:
    return ELFFile(BytesIO(binary)).get_section_by_name(name)


def _symbols(program: bytes, libraries: list[str], present: set[str]) -> dict[str, dict[str, list[str]]]:
    """Return the symbols that `program` takes from each of `libraries`, by version.

    What has no version may be from any that has none, as the file does not say which; `present`
    are those that are there.
    """
    versions = {
        version["vna_other"]: (need.name, version.name)
        for need, of_library in _section(program, ".gnu.version_r").iter_versions()
        for version in of_library
    }
    symbols = _section(program, ".dynsym").iter_symbols()
    indexes = _section(program, ".gnu.version").iter_symbols()
    taken: dict[str, dict[str, list[str]]] = {name: {} for name in libraries}
    unversioned = []
    for symbol, entry in zip(symbols, indexes, strict=True):
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name not in present:
            library, version = versions.get(entry["ndx"], ("", ""))
            if library in taken:
                taken[library].setdefault(version, []).append(symbol.name)
            elif symbol.name and symbol["st_info"]["bind"] != "STB_WEAK":
                unversioned.append(symbol.name)
    return {name: of_library or {"": unversioned} for name, of_library in taken.items()}


def _stand_in(name: str, symbols: dict[str, list[str]]) -> bytes:
    """Return a library `name` with `symbols`, by version. Raises SetupError."""
    everything = [symbol for of_version in symbols.values() for symbol in of_version]
    source = "".join(f"void {symbol}(void) {{ __builtin_trap(); }}\n" for symbol in everything)
    script = "".join(
        f"{version} {{ global: {'; '.join(of_version)}; }};\n" for version, of_version in symbols.items()
    )
    with tempfile.TemporaryDirectory() as scratch:
        built, code, versions = (Path(scratch, file) for file in ("built", "code.c", "versions"))
        code.write_text(source)
        versions.write_text(script)
        argv = ["gcc", "-shared", "-fPIC", "-nostdlib", "-fno-builtin", f"-Wl,-soname,{name}"]
        if symbols.keys() != {""}:
            argv.append(f"-Wl,--version-script={versions}")
        run([*argv, "-o", str(built), str(code)], purpose=f"building a stand-in for {name} (gcc is needed)")
        return built.read_bytes()
