"""Types of one name: what tells them apart, and that every choice that is offered works."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.model import ElfViewError, Record, declare
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import GCC, compile_cxx, compile_rust

if TYPE_CHECKING:
    from pathlib import Path

CXX = """
struct item { char x[3]; };
namespace ns {
    struct item { int a; };
    inline namespace v1 { struct hidden { char c[5]; }; }
    namespace { struct inner { long l; }; }
    struct outer { struct item { long b; } i; enum class color : char { red } color; };
    template<class T, int N> struct box { T t[N]; struct slot { char c[3]; } s; };
    template<class T> struct once { T t; };
    typedef ns::item alias;
}
item a; ns::outer b; ns::hidden c; ns::box<int, 2> d; ns::box<short, 3> e; ns::once<int> f; ns::inner g;
int h(int n) { struct item { char z[7]; } local{}; return local.z[n]; }
int h(long n) { struct item { char z[9]; } local{}; return local.z[n]; }
struct user {
    ns::item item; ns::outer::item inner; ns::hidden hidden; ns::alias alias; ns::once<int> once;
} i;
namespace ns { namespace { struct deep { item i; } j; } int use() { return sizeof(j); } }
"""
RUST = """
pub mod wire { pub struct Item { pub a: u32 } pub mod deep { pub struct Item { pub b: u64, pub c: u8 } } }
pub struct Wrapper<T> { pub inner: T }
pub enum Shape { Empty, Circle(u32) }
pub struct All {
    pub item: wire::Item, pub deep: wire::deep::Item, pub shape: Shape, pub text: &'static str,
    pub one: Wrapper<wire::Item>, pub two: Wrapper<u8>, pub other: Option<u16>,
}
pub fn local(n: u8) -> u8 { struct Item { z: [u8; 7] } let item = Item { z: [n; 7] }; item.z[1] }
#[no_mangle] pub static ALL: Option<All> = None;
"""


def choices(types: ElfTypes, name: str) -> dict[str, int]:
    """Return what is offered for an ambiguous name, with the sizes that are said."""
    with pytest.raises(ElfViewError) as caught:
        types.find(name)
    found = re.findall(r"'([^']+)' \((\d+) bytes\)", str(caught.value))
    assert f"has {len(found)} different definitions" in str(caught.value)
    return {choice: int(size) for choice, size in found}


def check(types: ElfTypes, name: str) -> dict[str, int]:
    """Assert that every choice selects the type that it says."""
    offered = choices(types, name)
    assert {choice: types.find(choice).size for choice in offered} == offered
    return offered


@pytest.fixture(scope="module", params=[4, 5])
def cxx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ElfTypes:
    return load_types(compile_cxx(tmp_path_factory.mktemp("elf"), CXX, f"-gdwarf-{request.param}"))


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> ElfTypes:
    return load_types(compile_rust(tmp_path_factory.mktemp("elf"), RUST))


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ("ns::item", 4),
        ("struct ns::item", 4),
        ("::ns::item", 4),
        ("::item", 3),
        ("ns::outer::item", 8),
        ("outer::item", 8),
        ("ns::(anonymous namespace)::inner", 8),
        ("ns::inner", 8),
        ("inner", 8),
        ("ns::hidden", 5),
        ("ns::v1::hidden", 5),
        ("hidden", 5),
        ("ns::box<int, 2>", 12),
        ("ns::box<int,2>", 12),
        ("box< int, 2 >::slot", 3),
        ("box<short int, 3>", 10),
        ("ns::once", 4),
        ("once", 4),
        ("enum ns::outer::color", 1),
        ("typedef ns::alias", 4),
    ],
)
def test_scopes_of_cxx(cxx: ElfTypes, asked: str, size: int) -> None:
    assert cxx.find(asked).size == size


def test_types_are_called_by_their_scope(cxx: ElfTypes, rust: ElfTypes) -> None:
    user, everything = cxx.find("user"), rust.find("All")
    assert isinstance(user, Record)
    assert [declare(member.type, member.name or "") for member in user.members] == [
        "struct ns::item item",
        "struct ns::outer::item inner",
        "struct ns::v1::hidden hidden",
        "ns::alias alias",
        "struct ns::once<int> once",
    ]
    assert isinstance(everything, Record)
    assert {declare(member.type, member.name or "") for member in everything.members} == {
        "program::wire::Item item",
        "program::wire::deep::Item deep",
        "program::Shape shape",
        "&str text",
        "program::Wrapper<program::wire::Item> one",
        "program::Wrapper<u8> two",
        "core::option::Option<u16> other",
    }


def test_every_choice_of_cxx_works(cxx: ElfTypes) -> None:
    offered = check(cxx, "item")
    assert {"struct ::item": 3, "struct ns::outer::item": 8}.items() <= offered.items()
    # Two functions of one name: only the line tells them apart.
    assert {size: re.sub(r":\d+$", "", choice) for choice, size in offered.items() if "h::" in choice} == {
        7: "struct h::item@program.cc",
        9: "struct h::item@program.cc",
    }
    assert check(cxx, "box") == {"struct ns::box<int, 2>": 12, "struct ns::box<short int, 3>": 10}


def test_scopes_of_rust(rust: ElfTypes) -> None:
    for asked, size in {
        "wire::Item": 4,
        "program::wire::deep::Item": 16,
        "deep::Item": 16,
        "Shape": 8,
    }.items():
        assert rust.find(asked).size == size
    assert rust.find("enum program::Shape").size == 8
    assert rust.find("Wrapper<u8>").size == 1
    assert rust.find("core::option::Option<u16>").size == 4
    assert check(rust, "Item") == {
        "program::wire::Item": 4,
        "program::wire::deep::Item": 16,
        "program::local::Item": 7,
    }
    assert check(rust, "Wrapper") == {"program::Wrapper<program::wire::Item>": 4, "program::Wrapper<u8>": 1}


def test_missing_name_with_a_scope_is_told_where_there_is_one(cxx: ElfTypes) -> None:
    with pytest.raises(
        ElfViewError, match=r"has no other::hidden, but defines struct ns::v1::hidden in program\.cc"
    ):
        cxx.find("other::hidden")
    with pytest.raises(ElfViewError, match=r"has no ns::hiden; did you mean struct ns::v1::hidden"):
        cxx.find("ns::hiden")


def test_source_compiled_twice_with_other_macros(tmp_path: Path) -> None:
    """The units have one name, and the definitions one line: only the entry's place tells them apart."""
    (tmp_path / "item.h").write_text("struct item { long x; char name[SIZE]; };\n")
    (tmp_path / "part.c").write_text('#include "item.h"\nstruct item NAME;\n')
    objects = []
    for name, size in (("a", 8), ("b", 16), ("c", 8)):
        macros = [f"-DSIZE={size}", f"-DNAME={name}"]
        command = ["gcc", "-g", "-c", *macros, "-o", f"{name}.o", "part.c"]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        objects.append(f"{name}.o")
    linked = ["gcc", "-nostdlib", "-static", "-Wl,-e,0", "-o", "program", *objects]
    subprocess.run(linked, cwd=tmp_path, check=True, timeout=60)
    offered = check(load_types(tmp_path / "program"), "struct item")
    assert list(offered.values()) == [16, 24]
    assert all(re.fullmatch("struct item@0x[0-9a-f]+", choice) for choice in offered)


def test_line_in_a_header_chooses(tmp_path: Path) -> None:
    sources = {
        "one.c": '#include "x/item.h"\nstruct item one;',
        "two.c": '#define OTHER\n#include "x/item.h"\nstruct item two;',
    }
    (tmp_path / "x").mkdir()
    header = "#ifdef OTHER\nstruct item { char c[2]; };\n#else\nstruct item { char c[9]; };\n#endif\n"
    (tmp_path / "x" / "item.h").write_text(header)
    types = load_types(GCC.link(tmp_path, sources))
    assert check(types, "item") == {"struct item@one.c": 9, "struct item@two.c": 2}
    assert types.find("item@item.h:2").size == 2
    assert types.find("item@x/item.h:4").size == 9
    with pytest.raises(ElfViewError, match=r"has no item@item\.h:9, but defines struct item in one\.c"):
        types.find("item@item.h:9")


@pytest.mark.parametrize("version", [4, 5])
def test_variables(tmp_path: Path, version: int) -> None:
    source = """
    extern struct item first[]; struct item { int x; } first[3];
    namespace ns { struct item second; struct cls { static item third[]; }; item cls::third[2]; }
    int count(int n) { static long counter[4]; return counter[n]++; }
    int other(int n) { static short counter[4]; return counter[n]++; }
    extern item elsewhere; int use() { return elsewhere.x; }
    """
    types = load_types(compile_cxx(tmp_path, source, f"-gdwarf-{version}"))
    sizes = {
        "first": 12,
        "second": 4,
        "ns::second": 4,
        "ns::cls::third": 8,
        "count::counter": 32,
        "elsewhere": 4,
    }
    assert {name: types.find_variable(name).size for name in sizes} == sizes
    with pytest.raises(ElfViewError) as caught:
        types.find_variable("counter")
    offered = re.findall(r"'([^']+)' \((\d+) bytes\)", str(caught.value))
    assert {name: types.find_variable(name).size for name, _ in offered} == {
        "count::counter": 32,
        "other::counter": 8,
    }


def test_statics_of_rust(rust: ElfTypes) -> None:
    assert rust.find_variable("ALL").name == "core::option::Option<program::All>"
    assert rust.find_variable("program::ALL").size == rust.find("All").size
