"""The ELF view against compilers: what they wrote into an object is what decoding it gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.render import to_json
from ivshmem_server.elf.lookup import load_types
from tests.ivshmem_server.elf.definitions import Part, agrees, program, records
from tests.ivshmem_server.elf.programs import (
    COMPILERS,
    DWARF_VERSIONS,
    Compiler,
    decoded,
    object_bytes,
)

DATA = Path(__file__).parent / "data"


# Each example is a run of the compiler.
@settings(max_examples=max(settings().max_examples // 4, 1))
@pytest.mark.parametrize("compiler", COMPILERS, ids=str)
@given(parts=st.lists(records(), min_size=1, max_size=4), version=st.sampled_from(DWARF_VERSIONS))
def test_objects_decode_to_what_initialised_them(compiler: Compiler, parts: list[Part], version: int) -> None:
    source = program(parts)
    note(source)
    with tempfile.TemporaryDirectory() as directory:
        path = compiler.compile(Path(directory), source, f"-gdwarf-{version}")
        types = load_types(path)
        for i, part in enumerate(parts):
            ctype, content = types.find(f"record_{i}_t"), object_bytes(path, f"record_{i}")
            assert ctype.size == len(content)
            value = to_json(decode(ctype, content))
            note(f"record_{i}: {content.hex()} decoded as {value}")
            assert agrees(part.decoded, value)


@pytest.mark.parametrize("name", ["big_endian_32_dwarf2.elf", "big_endian_64_dwarf5.elf"])
def test_big_endian(name: str) -> None:
    assert decoded(DATA / name, "struct whole", "whole") == {
        "mode": 5,
        "level": 100,
        "delta": -200,
        "wide": 0x123456789A,
        "sum": -2,
        "text": "text",
        "ratio": 1.5,
        "state": "BUSY",
        "ready": True,
        "count": 2,
        "parts": [{"low": -7, "high": 200}, {"low": 8, "high": 9}],
        "next": 0x1234,
        "grid": [[1, 2, 3], [4, 5, 0xABCD]],
    }
