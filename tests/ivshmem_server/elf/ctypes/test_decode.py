"""Decoding: what the compilers' objects do not show by themselves."""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.decode import Group, Leaf, Row, Table, decode
from ivshmem_server.elf.ctypes.model import ElfViewError
from ivshmem_server.elf.ctypes.render import to_json
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import DWARF_VERSIONS, GCC, decoded

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
typedef unsigned int __be32, __le32;
typedef unsigned short __be16;
typedef __be32 address_t;
struct pair { int a, b; };
struct open { int length; struct pair pairs[]; };
struct old { int length; char data[0]; };
struct either { int length; union { struct { struct { } nothing; int words[]; }; char bytes[0]; }; };
struct around { struct open inner; };
struct middle { int marker[0]; int after; };
struct many { struct old old[2]; };
struct nothing { } nothing;
struct __attribute__((packed)) across { unsigned int head : 26; unsigned char middle : 8; int rest : 32; };
struct across across = { 0x2ABCDEF, 207, -5 };
struct __attribute__((scalar_storage_order("big-endian"))) foreign {
    unsigned int whole; unsigned short low : 3, high : 13; double ratio; short list[2];
};
struct packet { address_t from; __be16 port; __le32 length; __be32 words[2]; } __attribute__((packed));
struct wide { __int128 signed_one; unsigned __int128 unsigned_one; };
struct odd {
    long double extended; _Complex float pair; _Bool flag; enum { ONE = 1 } one; unsigned char rest;
} odd;
struct open open = { 1 }; struct old old; struct either either; struct around around; struct middle middle;
struct many many;
struct foreign foreign = { 0x12345678, 5, 1000, -0.5, { -2, 3 } };
struct packet packet;
struct wide wide = { -5, ((unsigned __int128)1 << 127) + 1 };
"""


@pytest.fixture(scope="module", params=DWARF_VERSIONS)
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GCC.compile(tmp_path_factory.mktemp("elf"), SOURCE, f"-gdwarf-{request.param}")


@pytest.fixture(scope="module")
def types(elf: Path) -> ElfTypes:
    return load_types(elf)


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}i", *numbers)


def test_tree_of_values_knows_where_each_part_was(types: ElfTypes) -> None:
    value = decode(types.find("struct open"), bytes(8) + words(7, 1, 2, 3, 4), 8)
    assert isinstance(value, Group)
    (_, length), (_, pairs) = value.fields
    assert length == Leaf(length.type, 8, 7)
    assert isinstance(pairs, Table)
    assert [(pair.type.name, pair.offset) for pair in pairs.elements] == [
        ("struct pair", 12),
        ("struct pair", 20),
    ]


def test_flexible_array_goes_on_to_the_end_of_the_memory(types: ElfTypes) -> None:
    memory = words(9, 1, 2, 3, 4, 5)
    assert to_json(decode(types.find("struct open"), memory)) == {
        "length": 9,
        "pairs": [{"a": 1, "b": 2}, {"a": 3, "b": 4}],
    }
    assert to_json(decode(types.find("struct open"), memory[:4])) == {"length": 9, "pairs": []}
    assert to_json(decode(types.find("struct around"), memory, flexible=1)) == {
        "inner": {"length": 9, "pairs": [{"a": 1, "b": 2}]}
    }


def test_old_ways_to_write_a_flexible_array(types: ElfTypes) -> None:
    memory = words(9) + b"ab\0\1" + bytes(4)
    assert to_json(decode(types.find("struct old"), memory)) == {"length": 9, "data": "ab\0\1"}
    assert to_json(decode(types.find("struct either"), memory, flexible=2)) == {
        "length": 9,
        "nothing": {},
        "words": [0x0100_6261, 0],
        "bytes": "ab",
    }


def test_flexible_array_that_is_not_last_is_empty(types: ElfTypes) -> None:
    assert to_json(decode(types.find("struct middle"), words(1, 2))) == {"marker": [], "after": 1}
    assert to_json(decode(types.find("struct many"), words(1, 2, 3))) == {
        "old": [{"length": 1, "data": ""}, {"length": 2, "data": ""}]
    }


def test_struct_of_the_other_byte_order(elf: Path) -> None:
    assert decoded(elf, "struct foreign", "foreign") == {
        "whole": 0x12345678,
        "low": 5,
        "high": 1000,
        "ratio": -0.5,
        "list": [-2, 3],
    }


def test_kernel_names_for_byte_orders_are_believed(types: ElfTypes) -> None:
    memory = struct.pack(">IH", 0x0A00_0001, 80) + struct.pack("<I", 1500) + struct.pack(">II", 1, 2)
    assert to_json(decode(types.find("struct packet"), memory)) == {
        "from": 0x0A00_0001,
        "port": 80,
        "length": 1500,
        "words": [1, 2],
    }


def test_bit_fields_as_wide_as_their_type_across_its_boundaries(elf: Path) -> None:
    assert decoded(elf, "struct across", "across") == {"head": 0x2ABCDEF, "middle": 207, "rest": -5}


def test_integers_of_128_bits(elf: Path) -> None:
    assert decoded(elf, "struct wide", "wide") == {"signed_one": -5, "unsigned_one": 2**127 + 1}


def test_values_that_the_type_does_not_provide_for(types: ElfTypes) -> None:
    odd = types.find("struct odd")
    memory = bytes([*range(16), *range(8), 255, *bytes(3), 77, 0, 0, 0, 3]).ljust(odd.size)
    assert to_json(decode(odd, memory)) == {
        "extended": bytes(range(16)).hex(),
        "pair": bytes(range(8)).hex(),
        "flag": 255,
        "one": 77,
        "rest": 3,
    }


@pytest.mark.parametrize(
    ("offset", "said"),
    [
        (-1, "offset -1 is negative: give one from 0 to 16, in bytes"),
        (9, "struct pair takes 8 bytes, but at offset 0x9 only 7 of the memory's 16 are left"),
        (16, "at offset 0x10 only 0 of"),
        (2**70, "only 0 of the memory's 16 are left: give a smaller offset, or share more memory"),
    ],
)
def test_offsets_outside_of_the_memory(types: ElfTypes, offset: int, said: str) -> None:
    with pytest.raises(ElfViewError) as caught:
        decode(types.find("struct pair"), bytes(16), offset)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_type_fits_at_the_end_but_not_beyond_it(types: ElfTypes) -> None:
    nothing = types.find("struct nothing")
    assert to_json(decode(nothing, bytes(4), 4)) == {}
    with pytest.raises(ElfViewError):
        decode(nothing, bytes(4), 5)


def test_memory_may_be_a_mapping_and_is_let_go_of(types: ElfTypes) -> None:
    pair = types.find("struct pair")
    with mmap.mmap(-1, 4096) as memory:
        memory[4088:] = words(1, 2)
        value = decode(pair, memory, 4088)
        words_of_memory = memoryview(memory).cast("Q")
        assert decode(pair, words_of_memory, 4088) == value
        words_of_memory.release()
    assert to_json(value) == {"a": 1, "b": 2}


def test_array_of_numbers_is_one_row(types: ElfTypes) -> None:
    value = decode(types.find("struct packet"), bytes(18))
    assert isinstance(value, Group)
    row = value.fields[3][1]
    assert isinstance(row, Row)
    assert (row.offset, row.items) == (10, (0, 0))
