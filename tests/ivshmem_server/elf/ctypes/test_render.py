"""What people and programs see of decoded memory."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING

import pytest

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.render import render, to_json
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import GCC

if TYPE_CHECKING:
    from ivshmem_server.elf.ctypes.model import CType

SOURCE = """
#include <stdint.h>
enum state { IDLE, BUSY };
struct ring {
    uint16_t head, tail;
    enum state state, next;
    char name[8], key;
    uint8_t mac[6];
    uint32_t low : 4, high : 28;
    struct { int32_t x, y; } points[3];
    union { void *handle; int32_t number; };
    _Bool ready;
    float ratios[3];
    int32_t deltas[2][2];
};
struct ring ring;
struct log { uint32_t words[100]; struct { uint8_t level; } lines[100]; char text[300]; } log;
"""


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> ElfTypes:
    return load_types(GCC.compile(tmp_path_factory.mktemp("elf"), SOURCE))


@pytest.fixture(scope="module")
def ring(types: ElfTypes) -> CType:
    return types.find("struct ring")


RING = struct.pack(
    "<HHII8sc6sBIiiiiiiq?3x3f4i",
    *(7, 4096, 1, 9, b'a"\n\xff', b"K", b"\x52\x54\0\0\0\x01", 5, 0x1234567),
    *(1, -2, 1, -2, 3, 4, 0xFFFF_8000_0000, True, 1.5, 1.5, -0.0, 1, 2, 3, 4),
)


def test_tree(ring: CType) -> None:
    assert render(decode(ring, bytes(0xF0) + RING, 0xF0)).splitlines() == [
        "struct ring at 0xf0, 96 bytes",
        "0x0f0  uint16_t head    = 7",
        "0x0f2  uint16_t tail    = 4096 (0x1000)",
        "0x0f4  enum state state = BUSY (1)",
        "0x0f8  enum state next  = 9",
        '0x0fc  char name[8]     = "a\\"\\n\\xff"',
        "0x104  char key         = 75 'K'",
        "0x105  uint8_t mac[6]   = {0x52, 0x54, 0x00 (3 times), 0x01}",
        "0x10b  uint32_t low:4   = 5",
        "0x10c  uint32_t high:28 = 19088743 (0x1234567)",
        "0x110  struct {...} points[3]",
        "0x110    [0..1]",
        "0x110      int32_t x    = 1",
        "0x114      int32_t y    = -2",
        "0x120    [2]",
        "0x120      int32_t x    = 3",
        "0x124      int32_t y    = 4",
        "0x128  union {...}",
        "0x128    void *handle   = 0xffff80000000",
        "0x128    int32_t number = -2147483648",
        "0x130  _Bool ready      = true",
        "0x134  float ratios[3]  = {1.5 (2 times), -0.0}",
        "0x140  int32_t deltas[2][2]",
        "0x140    [0]            = {1, 2}",
        "0x148    [1]            = {3, 4}",
    ]


def test_json(ring: CType) -> None:
    value = to_json(decode(ring, RING))
    assert json.loads(json.dumps(value, allow_nan=False)) == {
        "head": 7,
        "tail": 4096,
        "state": "BUSY",
        "next": 9,
        "name": 'a"\n\\xff',
        "key": 75,
        "mac": [0x52, 0x54, 0, 0, 0, 1],
        "low": 5,
        "high": 0x1234567,
        "points": [{"x": 1, "y": -2}, {"x": 1, "y": -2}, {"x": 3, "y": 4}],
        "handle": 0xFFFF_8000_0000,
        "number": -0x8000_0000,
        "ready": True,
        "ratios": [1.5, 1.5, -0.0],
        "deltas": [[1, 2], [3, 4]],
    }


def test_long_arrays_take_lines_of_their_own_and_are_cut(types: ElfTypes) -> None:
    memory = struct.pack("<100I", *range(20), *[7] * 80) + bytes(range(100)) + b"x" * 300
    lines = render(decode(types.find("struct log"), memory), limit=30).splitlines()
    assert lines[1:6] == [
        "0x000  uint32_t words[100]",
        "0x000    [0..15]         = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}",
        "0x040    [16..29]        = {16, 17, 18, 19, 7 (10 times)}",
        "0x078    ... 70 more",
        "0x190  struct {...} lines[100]",
    ]
    assert lines[-3:] == [
        "0x1ad      uint8_t level = 29 (0x1d)",
        "0x1ae    ... 70 more",
        f'0x1f4  char text[300]    = "{"x" * 30}" ... 270 more',
    ]


def test_floats_that_json_has_no_number_for(types: ElfTypes) -> None:
    value = decode(
        types.find("struct ring"), RING[:68] + struct.pack("<3f", math.nan, -math.inf, 0.1) + RING[80:]
    )
    assert json.loads(json.dumps(to_json(value), allow_nan=False))["ratios"] == [
        "nan",
        "-inf",
        0.10000000149011612,
    ]


def test_type_without_members_is_a_line(types: ElfTypes) -> None:
    value = decode(types.find("uint16_t"), b"\x34\x12")
    assert render(value) == "uint16_t at 0x0, 2 bytes\n0x0  uint16_t = 4660 (0x1234)"
    assert to_json(value) == 0x1234
