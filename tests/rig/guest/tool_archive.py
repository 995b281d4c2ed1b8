"""Archives of programs for the guest, with the libraries that they really use and stand-ins for others.

Debian's fio is linked with those of storage clusters and of remote memory, 100 megabytes of them, and
its iperf3 with OpenSSL: a guest's devices need none of that. The stand-ins have their names and
symbols, and a symbol that is called ends the program.
"""

from __future__ import annotations

import hashlib
import tempfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elftools.elf.elffile import ELFFile

from tests.rig.debian import cache, packages, platforms
from tests.rig.debian.apt import SetupError, run
from tests.rig.guest import tools
from tests.rig.guest.cpio import Archive

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_LIBRARIES = "lib/x86_64-linux-gnu"
#: Where packages have programs and libraries.
_PLACES = {"bin", "sbin", "x86_64-linux-gnu"}
_LOADER = "lib64/ld-linux-x86-64.so.2"


def archive(names: Iterable[str]) -> Path:
    """Return the cpio archive of the tool sets `names`; build it first if it is new. Raises SetupError."""
    wanted = "-".join(sorted(set(names)))
    name = f"{platforms.selected().name}-{wanted}"
    built = cache.directory() / f"{name}-{_fingerprint()}.cpio"
    root = tools.root()
    if not built.exists():
        packages.say(f"building the guest's archive of {wanted}")
        written = Archive()
        for path, content in files(root, wanted.split("-")).items():
            written.file(path, content, executable=True)
        with tempfile.TemporaryDirectory(dir=cache.directory(), prefix=f"{wanted}-") as scratch:
            whole = Path(scratch, built.name)
            whole.write_bytes(written.finish())
            whole.rename(built)
        for old in set(cache.directory().glob(f"{name}-{'?' * len(_fingerprint())}.cpio")) - {built}:
            old.unlink(missing_ok=True)
    return built


def _fingerprint() -> str:
    """Return what changes with everything of ours that an archive is made from."""
    sources = (Path(__file__), *(Path(__file__).with_name(name) for name in ("cpio.py", "tools.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]


def files(root: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return what a machine needs to run the tool sets `names`, by path: programs, loader, libraries.

    `root` is tools.root(). Raises SetupError.
    """
    found = {_LOADER: _unpacked(root, Path(_LOADER).name)}
    for program in (program for name in names for program in tools.TOOLS[name].programs):
        content = found[f"bin/{program}"] = _unpacked(root, program)
        if not content:
            raise SetupError(f"no {program} in {root}: remove that directory, and run `make setup`")
    wanted = [library for binary in found.values() for library in _needed(binary)]
    wanted += [library for name in names for library in tools.TOOLS[name].loaded]
    while wanted:
        path = f"{_LIBRARIES}/{(name := wanted.pop())}"
        if path not in found and name != Path(_LOADER).name:
            found[path] = _unpacked(root, name)
            wanted += _needed(found[path])
    binaries = [binary for binary in found.values() if binary]
    present = set().union(*map(_defined, binaries))
    for path in [path for path, content in found.items() if not content]:
        name = Path(path).name
        users = [binary for binary in binaries if name in _needed(binary)]
        found[path] = _stand_in(name, _symbols(users, name, present))
    return found


def _unpacked(root: Path, name: str) -> bytes:
    """Return the program or library `name`; nothing for one that was not fetched."""
    paths = [path for path in root.rglob(name) if path.parent.name in _PLACES and path.is_file()]
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


def _symbols(users: Iterable[bytes], library: str, present: set[str]) -> dict[str, set[str]]:
    """Return the symbols that `users`, programs and libraries, take from `library`, by version.

    What has no version may be from any that has none, as an ELF file does not say which; `present`
    are those that are there.
    """
    taken: dict[str, set[str]] = {}
    unversioned = set()
    for binary in users:
        versions = {
            version["vna_other"]: (need.name, version.name)
            for need, of_library in _section(binary, ".gnu.version_r").iter_versions()
            for version in of_library
        }
        symbols = _section(binary, ".dynsym").iter_symbols()
        indexes = _section(binary, ".gnu.version").iter_symbols()
        for symbol, entry in zip(symbols, indexes, strict=True):
            if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name not in present:
                wanted_of, version = versions.get(entry["ndx"], ("", ""))
                if wanted_of == library:
                    taken.setdefault(version, set()).add(symbol.name)
                elif symbol.name and symbol["st_info"]["bind"] != "STB_WEAK" and not wanted_of:
                    unversioned.add(symbol.name)
    return taken or {"": unversioned}


def _stand_in(name: str, symbols: dict[str, set[str]]) -> bytes:
    """Return a library `name` with `symbols`, by version. Raises SetupError."""
    everything = sorted(symbol for of_version in symbols.values() for symbol in of_version)
    source = "".join(f"void {symbol}(void) {{ __builtin_trap(); }}\n" for symbol in everything)
    script = "".join(
        f"{version} {{ global: {'; '.join(sorted(symbols[version]))}; }};\n" for version in sorted(symbols)
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
