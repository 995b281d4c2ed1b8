"""Finding a type in a large ELF: what is not looked at, and that nothing is missed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from elftools.dwarf.die import DIE

from ivshmem_server.elf.ctypes.model import ElfViewError, Record
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import GCC

if TYPE_CHECKING:
    from pathlib import Path

UNITS = 12
# Names that end in "ring" and "pool", more of them than are searched for one by one.
TAILS = [f"{letter}{digit}_{end}" for letter in "abcdefgh" for digit in range(6) for end in ("ring", "pool")]


def unit(number: int) -> str:
    """Return a unit full of types of its own, that declares what the last one defines."""
    own = "\n".join(
        f"struct unit{number}_type{i} {{ int a, b, c, rings; }} unit{number}_object{i};" for i in range(50)
    )
    return f"struct hidden; struct hidden *hidden{number}; struct common {{ int x; }} common{number}; {own}"


# A unit as no compiler here writes it: with large and scattered abbreviation codes, and names that come last.
ASSEMBLED = """
.section .debug_abbrev
# compile_unit: name; structure: size, name; member: name, type, location; base_type: size, encoding, name
.uleb128 7, 0x11; .byte 1; .uleb128 0x03, 0x08, 0, 0
.uleb128 300, 0x13; .byte 1; .uleb128 0x0b, 0x0b, {gap} 0x03, 0x08, 0, 0
.uleb128 20000, 0x0d; .byte 0; .uleb128 0x03, 0x08, 0x49, 0x13, 0x38, 0x0f, 0, 0
.uleb128 301, 0x24; .byte 0; .uleb128 0x0b, 0x0b, 0x3e, 0x0b, 0x03, 0x08, 0, 0
.byte 0
.section .debug_info
.long end - start
start: .value 4; .long .debug_abbrev; .byte 8
.uleb128 7; .asciz "assembled.s"
strange: .uleb128 300; .byte 4; {value} .asciz "strange"
.uleb128 20000; .asciz "number"; .long type - start + 4; .uleb128 0
.byte 0
type: .uleb128 301; .byte 4, 7; .asciz "unsigned"
.byte 0
end:
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = {f"unit{number}.c": unit(number) for number in range(UNITS)}
    sources["tails.c"] = "".join(f"struct {tail} {{ int x; }} {tail};\n" for tail in TAILS)
    sources["last.c"] = """
        struct hidden { long x; struct ring { short y; } ring; int pool; } hidden;
        int last(int n) { struct inside { char c[5]; } inside = { { n } }; return inside.c[0]; }
    """
    return GCC.link(tmp_path_factory.mktemp("elf"), sources)


@pytest.fixture
def types(program: Path) -> ElfTypes:
    return load_types(program)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the entries that are parsed, in the only element of the list."""
    count = [0]
    parse = DIE._parse_DIE

    def counted(die: DIE) -> None:
        count[0] += 1
        parse(die)

    monkeypatch.setattr(DIE, "_parse_DIE", counted)
    return count


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("struct hidden", 16),
        # The tail of 48 others, as it is where the linker keeps one copy of both.
        ("struct ring", 2),
        ("struct inside", 5),
        ("struct unit7_type49", 16),
        ("struct a0_pool", 4),
    ],
)
def test_only_the_unit_that_defines_a_type_is_parsed_and_not_all_of_it(
    types: ElfTypes, parsed: list[int], name: str, size: int
) -> None:
    assert types.find(name).size == size
    # A unit of this program has over 350 entries with its members, all together over 4000.
    assert parsed[0] < 250


def test_name_that_is_a_tail_and_no_type(types: ElfTypes) -> None:
    with pytest.raises(ElfViewError, match="did you mean struct"):
        types.find("struct pool")


def test_definition_in_every_unit_is_one_type(types: ElfTypes) -> None:
    assert types.find("common").size == 4
    assert types.find("common@unit3.c").size == 4


def test_all_names(types: ElfTypes) -> None:
    names = set(types.names())
    assert {f"struct {tail}" for tail in TAILS} <= names
    assert {f"struct unit{number}_type{i}" for number in range(UNITS) for i in range(50)} <= names
    assert "struct hidden" in names


@pytest.mark.parametrize(
    ("gap", "value"),
    [
        ("", ""),
        ("0x3a, 0x06,", ".long 1;"),
        # Attributes of any length before the name: no telling where it would be.
        ("0x3a, 0x0f,", ".uleb128 1000;"),
        ("0x3a, 0x0a,", '.byte 3; .ascii "abc";'),
    ],
    ids=["nothing", "data4", "udata", "block1"],
)
def test_abbreviations_of_another_compiler(tmp_path: Path, gap: str, value: str) -> None:
    source = ASSEMBLED.format(gap=gap, value=value)
    path = GCC.assemble(tmp_path, source)
    assert load_types(path).names() == ["struct strange", "unsigned"]
    found = load_types(path).find("struct strange")
    assert isinstance(found, Record)
    assert [(member.name, member.type.name) for member in found.members] == [("number", "unsigned")]


def test_entries_that_run_in_a_circle(tmp_path: Path) -> None:
    next_is_itself = ASSEMBLED.format(gap="0x01, 0x13,", value=".long strange - start + 4;")
    around = '.uleb128 300; .byte 4; .long type - start + 4; .asciz "around"'
    source = next_is_itself.replace("strange: ", f"{around}\nstrange: ").replace(
        "\ntype: ", "\n.byte 0\ntype: "
    )
    types = load_types(GCC.assemble(tmp_path, source))
    with pytest.raises(ElfViewError, match="its entries run in a circle"):
        types.find("around")
    assert types.find("unsigned").size == 4
