"""Variants as no compiler here writes them: by lists and ranges of discriminants, signed, without one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.render import Json, render, to_json
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import GCC

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
.section .debug_abbrev
# 1 compile_unit: name; 2 structure: name, size; 3 member: name, type, location; 4 variant_part: discriminant;
# 5 variant: list; 6 variant for all others; 7 base_type: size, encoding, name; 8 variant_part without any;
# 9 variant: value
.uleb128 1, 0x11; .byte 1; .uleb128 0x03, 0x08, 0, 0
.uleb128 2, 0x13; .byte 1; .uleb128 0x03, 0x08, 0x0b, 0x0b, 0, 0
.uleb128 3, 0x0d; .byte 0; .uleb128 0x03, 0x08, 0x49, 0x13, 0x38, 0x0b, 0, 0
.uleb128 4, 0x33; .byte 1; .uleb128 0x15, 0x13, 0, 0
.uleb128 5, 0x19; .byte 1; .uleb128 0x3d, 0x0a, 0, 0
.uleb128 6, 0x19; .byte 1; .uleb128 0, 0
.uleb128 7, 0x24; .byte 0; .uleb128 0x0b, 0x0b, 0x3e, 0x0b, 0x03, 0x08, 0, 0
.uleb128 8, 0x33; .byte 1; .uleb128 0, 0
.uleb128 9, 0x19; .byte 1; .uleb128 0x16, 0x0b, 0, 0
.byte 0
.section .debug_info
.long end - start
start: .value 4; .long .debug_abbrev; .byte 8
.uleb128 1; .asciz "assembled.s"

.uleb128 2; .asciz "listed"; .byte 4
kind: .uleb128 3; .asciz "kind"; .long type - start + 4; .byte 0
.uleb128 4; .long kind - start + 4
# -1, and 2 to 100
.uleb128 5; .byte 6; .byte 0; .sleb128 -1; .byte 1; .sleb128 2; .sleb128 100
.uleb128 3; .asciz "first"; .long type - start + 4; .byte 1; .byte 0
# 0xfe stands for -2 where one byte is written
.uleb128 9; .byte 0xfe
.uleb128 3; .asciz "second"; .long type - start + 4; .byte 2; .byte 0
.uleb128 6
.uleb128 3; .asciz "others"; .long type - start + 4; .byte 3
.uleb128 3; .asciz "too"; .long type - start + 4; .byte 1; .byte 0
.byte 0, 0

.uleb128 2; .asciz "untold"; .byte 2
.uleb128 8
.uleb128 6
.uleb128 3; .asciz "one"; .long type - start + 4; .byte 0; .byte 0
.uleb128 6
.uleb128 3; .asciz "other"; .long type - start + 4; .byte 1; .byte 0
.byte 0, 0

.uleb128 2; .asciz "strange"; .byte 4
.uleb128 3; .asciz "sound"; .long type - start + 4; .byte 3
real: .uleb128 3; .asciz "real"; .long float - start + 4; .byte 0
.uleb128 4; .long real - start + 4
.uleb128 6
.uleb128 3; .asciz "one"; .long type - start + 4; .byte 1; .byte 0
.byte 0, 0

type: .uleb128 7; .byte 1, 5; .asciz "i8"
float: .uleb128 7; .byte 2, 4; .asciz "half"
.byte 0
end:
"""


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> ElfTypes:
    return load_types(GCC.assemble(tmp_path_factory.mktemp("elf"), SOURCE))


@pytest.mark.parametrize(
    ("kind", "active"),
    [
        (-1, {"first": 1}),
        (2, {"first": 1}),
        (50, {"first": 1}),
        (100, {"first": 1}),
        (-2, {"second": 2}),
        (101, {"others": 3, "too": 1}),
        (0, {"others": 3, "too": 1}),
        (-128, {"others": 3, "too": 1}),
    ],
)
def test_list_of_discriminants(types: ElfTypes, kind: int, active: dict[str, Json]) -> None:
    value = decode(types.find("listed"), bytes([kind & 0xFF, 1, 2, 3]))
    assert to_json(value) == {"kind": kind, **active}
    assert [line.split()[2] for line in render(value).splitlines()[1:]] == ["kind", *active]


def test_variants_that_nothing_tells_apart_are_all_shown(types: ElfTypes) -> None:
    assert to_json(decode(types.find("untold"), b"\1\2")) == {"one": 1, "other": 2}


def test_discriminant_that_is_no_number(types: ElfTypes) -> None:
    assert to_json(decode(types.find("strange"), b"\0\0\0\7")) == {
        "sound": 7,
        "real": 0.0,
        "variants of struct strange": {
            "unreadable": "the discriminant is of type half, which is not a number"
        },
    }


def test_damaged_list(tmp_path: Path) -> None:
    source = SOURCE.replace(".sleb128 100", ".byte 0xe4, 0x80")
    assert source != SOURCE
    listed = load_types(GCC.assemble(tmp_path, source)).find("listed")
    assert "a list of discriminants ends early" in render(decode(listed, bytes(4)))
