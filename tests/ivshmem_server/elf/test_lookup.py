"""Finding types by name, and what a type says: its members, their places, its name in C."""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.model import (
    ElfViewError,
    Enum,
    Record,
    declare,
    flatten,
    layout,
    strip,
)
from ivshmem_server.elf.dwarf.query import Query
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import DWARF_VERSIONS, GCC, Compiler, object_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ivshmem_server.elf.ctypes.model import CType

SOURCE = """
#include <stddef.h>
#include <stdint.h>
enum state { IDLE, BUSY = 3, LOST = -1 };
typedef struct point { int32_t x, y; } point_t;
typedef struct { uint8_t tag; } untagged_t;
union word { uint32_t whole; uint8_t bytes[4]; };
struct opaque;
struct ring {
    struct point points[2][3];
    volatile uint64_t head;
    const char *name;
    int (*notify)(struct ring *, int);
    int (*table)[4];
    int (*handlers[5])(void);
    void (**indirect)(void);
    int (*const constant)(void);
    char *const fixed;
    const volatile char label[2][4];
    struct opaque *private;
    struct { uint16_t low; union { uint16_t high; uint8_t part; }; uint16_t flag : 1, rest : 7; };
    uint32_t mode : 3, level : 7;
    enum state state;
    union word word;
    untagged_t tail[];
};
struct ring ring;
point_t point;
#define PLACE(member) { offsetof(struct ring, member), sizeof(((struct ring *)0)->member) }
struct { uint32_t offset, size; } places[] = {
"""
PLACES = ["points", "head", "name", "notify", "handlers", "fixed", "low", "high", "part", "state", "word"]
SOURCE += ", ".join(f"PLACE({name})" for name in PLACES) + "};"


@pytest.fixture(scope="module", params=["-gdwarf64", *(f"-gdwarf-{version}" for version in DWARF_VERSIONS)])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GCC.compile(tmp_path_factory.mktemp("elf"), SOURCE, request.param)


@pytest.fixture(scope="module")
def types(elf: Path) -> ElfTypes:
    return load_types(elf)


def record(ctype: CType) -> Record:
    found = strip(ctype)
    assert isinstance(found, Record)
    return found


@pytest.mark.parametrize(
    ("asked", "name", "size"),
    [
        ("struct point", "struct point", 8),
        ("point", "struct point", 8),
        ("  struct   point ", "struct point", 8),
        ("point_t", "point_t", 8),
        ("typedef point_t", "point_t", 8),
        ("untagged_t", "untagged_t", 1),
        ("union word", "union word", 4),
        ("word", "union word", 4),
        ("enum state", "enum state", 4),
        ("uint8_t", "uint8_t", 1),
        ("unsigned char", "unsigned char", 1),
        ("struct point@program.c", "struct point", 8),
    ],
)
def test_find(types: ElfTypes, asked: str, name: str, size: int) -> None:
    found = types.find(asked)
    assert (found.name, found.size) == (name, size)


def test_members_are_where_the_compiler_put_them(elf: Path, types: ElfTypes) -> None:
    ring = record(types.find("struct ring"))
    places = {name: (ring.member(name).offset, ring.member(name).type.size) for name in PLACES}
    assert places == dict(zip(PLACES, struct.iter_unpack("<II", object_bytes(elf, "places")), strict=True))
    assert ring.size == len(object_bytes(elf, "ring"))


def test_bit_fields_have_a_place_in_bits(types: ElfTypes) -> None:
    ring = record(types.find("struct ring"))
    mode, level = ring.member("mode"), ring.member("level")
    assert mode.bit_offset is not None
    assert (mode.bit_offset, mode.bit_size, mode.offset) == (
        8 * mode.offset,
        3,
        ring.member("flag").offset + 2,
    )
    assert (level.bit_offset, level.bit_size, level.offset) == (mode.bit_offset + 3, 7, mode.offset)
    flag, rest = ring.member("flag"), ring.member("rest")
    assert flag.offset == ring.member("high").offset + 2
    assert (flag.bit_offset, rest.bit_offset, rest.offset) == (
        8 * flag.offset,
        8 * flag.offset + 1,
        flag.offset,
    )


def test_declarations_read_as_in_the_source(types: ElfTypes) -> None:
    ring = record(types.find("struct ring"))
    assert [declare(member.type, member.name or "") for member in ring.members] == [
        "struct point points[2][3]",
        "volatile uint64_t head",
        "const char *name",
        "int (*notify)()",
        "int (*table)[4]",
        "int (*handlers[5])()",
        "void (**indirect)()",
        "int (*const constant)()",
        "char *const fixed",
        "const volatile char label[2][4]",
        "struct opaque *private",
        "struct {...}",
        "uint32_t mode",
        "uint32_t level",
        "enum state state",
        "union word word",
        "untagged_t tail[]",
    ]


def test_enumerators(types: ElfTypes) -> None:
    state = types.find("enum state")
    assert isinstance(state, Enum)
    assert state.names == (("IDLE", 0), ("BUSY", 3), ("LOST", -1))


def test_names_are_what_find_takes(types: ElfTypes) -> None:
    names = types.names()
    assert {"struct ring", "struct point", "typedef point_t", "union word", "enum state", "int"} <= set(names)
    assert "struct opaque" not in names
    assert all(types.find(name).size > 0 for name in names)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("struct rnig", "has no struct rnig; did you mean struct ring?"),
        ("POINT_T", "has no POINT_T; did you mean typedef point_t or struct point"),
        ("union point", "has no union point, but defines struct point in program.c"),
        ("point@other.c", "has no point@other.c, but defines struct point in program.c"),
        ("struct opaque", "it only declares struct opaque in program.c: give the ELF that defines it"),
        ("zzzzzz", "compilers leave out types that nothing uses"),
        ("", "'' is not the name of a type"),
        ("@program.c", "is not the name of a type"),
        ("::", "'::' is not the name of a type"),
        ("point\udcff", "has no point\\xff; did you mean struct point"),
        ("point::", "'point::' is not the name of a type"),
    ],
)
def test_name_that_nothing_defines(types: ElfTypes, asked: str, said: str) -> None:
    with pytest.raises(ElfViewError) as caught:
        types.find(asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_in_utf8_is_one_in_a_locale_of_another_encoding_too() -> None:
    typed = "Gr\u00f6\u00dfe".encode().decode("ascii", "surrogateescape")
    assert str(Query.parse(f"struct {typed}")) == "struct Gr\u00f6\u00dfe"


def test_same_name_for_different_types_has_to_be_chosen(tmp_path: Path) -> None:
    sources = {
        "a.c": "struct item { int x; } a;",
        "b.c": "struct item { char name[16]; } b;",
        "c.c": "struct item { int x; } c;",
    }
    types = load_types(GCC.link(tmp_path, sources))
    with pytest.raises(ElfViewError) as caught:
        types.find("item")
    assert str(caught.value) == (
        "item has 2 different definitions, give one of: "
        "'struct item@a.c' (4 bytes), 'struct item@b.c' (16 bytes)"
    )
    assert types.find("struct item@b.c").size == 16
    assert types.find("item@c.c").size == 4


def test_struct_and_typedef_of_one_name(tmp_path: Path) -> None:
    source = """
    typedef struct same { int x; } same; same a;
    struct other { int x; } b; typedef long other; other c;
    """
    types = load_types(GCC.compile(tmp_path, source))
    assert types.find("same").size == 4
    assert types.find("typedef other").size == 8
    assert types.find("struct other").size == 4
    with pytest.raises(ElfViewError, match=r"'typedef other' \(8 bytes\)"):
        types.find("other")


def test_definitions_that_differ_in_names_of_types_only_are_one(tmp_path: Path) -> None:
    sources = {
        "a.c": "typedef unsigned u32; struct item { u32 x; struct item *next; } a;",
        "b.c": "struct item { unsigned x; void *next; } b;",
    }
    found = load_types(GCC.link(tmp_path, sources)).find("item")
    assert found.size == 16
    assert layout(found) == layout(load_types(tmp_path / "program").find("item@b.c"))


def test_functions_and_void_are_no_types_of_memory(tmp_path: Path) -> None:
    source = "typedef int call_t(int); typedef void nothing_t; call_t *call; nothing_t *nothing;"
    types = load_types(GCC.compile(tmp_path, source))
    with pytest.raises(ElfViewError, match="not a type that memory can hold"):
        types.find("call_t")
    with pytest.raises(ElfViewError, match="nothing_t is void"):
        types.find("nothing_t")


def test_types_in_functions_and_in_nested_structs_are_found(tmp_path: Path) -> None:
    source = """
    struct outer { struct inner { long a; } b; } outer;
    int f(int n)
    {
        struct local { char c[3]; } x = { { n } };
        { enum deep { DEEP } y = n; return x.c[0] + y; }
    }
    """
    types = load_types(GCC.compile(tmp_path, source))
    assert [types.find(name).size for name in ("inner", "local", "deep")] == [8, 3, 4]


@pytest.mark.parametrize("options", [["-gdwarf-4"], ["-fdebug-types-section", "-gdwarf-5"]])
def test_classes(tmp_path: Path, options: list[str]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    source = """
    namespace space { struct inner { int a; static int shared; bool b; }; enum class color : char { RED }; }
    struct base { virtual int call(); int x; }; int base::call() { return x; }
    struct derived : base { space::inner inner; int &reference; space::color color; derived(); };
    derived::derived() : reference(x) {} derived object;
    """
    program = Compiler("g++", ("g++",)).link(tmp_path, {"program.cc": source}, "-fno-rtti", *options)
    derived = record(load_types(program).find("derived"))
    assert [declare(member.type, member.name or "") for member in flatten(derived)] == [
        "int (**_vptr.base)()",
        "int x",
        "struct space::inner inner",
        "int &reference",
        "enum space::color color",
    ]
    assert [member.name for member in record(derived.member("inner").type).members] == ["a", "b"]


def test_kernel_header_and_its_own_offsets(tmp_path: Path) -> None:
    offsets = ["DFSELECT", "DF", "GFSELECT", "GF", "MSIX", "NUMQ", "STATUS", "CFGGENERATION", "Q_SELECT"]
    offsets += ["Q_SIZE", "Q_MSIX", "Q_ENABLE", "Q_NOFF", "Q_DESCLO", "Q_DESCHI", "Q_AVAILLO", "Q_AVAILHI"]
    offsets += ["Q_USEDLO", "Q_USEDHI"]
    enumerators = ", ".join(f"{name} = VIRTIO_PCI_COMMON_{name}" for name in offsets)
    source = "#include <linux/virtio_pci.h>\nstruct virtio_pci_common_cfg configuration;"
    types = load_types(GCC.compile(tmp_path, f"{source} enum offsets {{ {enumerators} }} offsets;"))
    kernel = types.find("enum offsets")
    assert isinstance(kernel, Enum)
    members = record(types.find("virtio_pci_common_cfg")).members
    assert [member.offset for member in members] == [offset for _, offset in kernel.names]
