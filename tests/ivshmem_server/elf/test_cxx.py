"""The ELF view against g++: what C has not."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.render import render, to_json
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import compile_cxx, decoded

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
struct shared { virtual ~shared(); int s; }; shared::~shared() {}
struct left { int x = 1, a = 2; };
struct right { int x = 3, b = 4; };
struct both : left, right { int x = 5; };
struct diamond : both, virtual shared { int own; ~diamond(); }; diamond::~diamond() {} diamond *diamonds;
struct incomplete; struct nothing {};
namespace space { enum class color : unsigned char { red = 1, blue = 200 }; }
template<class T, int N> struct box { T items[N]; };
struct all {
    decltype(nullptr) null = nullptr; int nothing::*number = nullptr; int (nothing::*function)(int) = nullptr;
    space::color color = space::color::blue; box<short, 2> shorts = { { -1, 2 } };
    unsigned low : 3 = 5; bool flag : 1 = true; [[no_unique_address]] nothing empty; long tail = -7;
} all;
both both_;
"""


@pytest.fixture(scope="module", params=[4, 5])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_cxx(tmp_path_factory.mktemp("elf"), SOURCE, f"-gdwarf-{request.param}")


@pytest.fixture(scope="module")
def types(elf: Path) -> ElfTypes:
    return load_types(elf)


def test_members_of_kinds_that_c_has_not(elf: Path) -> None:
    assert decoded(elf, "all", "all") == {
        "null": 0,
        "number": 0xFFFF_FFFF_FFFF_FFFF,
        "function": "00" * 16,
        "color": "blue",
        "shorts": {"items": [-1, 2]},
        "low": 5,
        "flag": True,
        "empty": {},
        "tail": -7,
    }


def test_bases_whose_members_have_one_name_are_told_apart(elf: Path) -> None:
    assert decoded(elf, "both", "both_") == {"left": {"x": 1, "a": 2}, "right": {"x": 3, "b": 4}, "x": 5}


def test_virtual_base_is_the_only_member_that_is_not_shown(types: ElfTypes) -> None:
    diamond = types.find("diamond")
    value = decode(diamond, bytes(diamond.size))
    why = "the place of a virtual base class is known only at run time"
    data = to_json(value)
    assert isinstance(data, dict)
    assert (data["own"], data["shared"]) == (0, {"unreadable": why})
    lines = render(value).splitlines()
    assert [line.startswith("????  struct shared") and line.endswith(f" = {why}") for line in lines].count(
        True
    ) == 1
    assert lines[-1].startswith("0x1c  int own")


def test_member_whose_type_another_unit_defines(tmp_path: Path) -> None:
    (tmp_path / "part.h").write_text("namespace ns { struct part { int a, b; }; }\n")
    (tmp_path / "part.cc").write_text('#include "part.h"\nns::part part;\n')
    (tmp_path / "whole.cc").write_text('#include "part.h"\nstruct whole { ns::part part; int c; } whole;\n')
    for names in (["whole.cc"], ["whole.cc", "part.cc"]):
        kind = ["-c"] if len(names) == 1 else ["-nostdlib", "-static", "-Wl,-e,0"]
        # What a header defines is left to the source of its name.
        command = ["g++", "-g", "-femit-struct-debug-baseonly", *kind, "-o", "program", *names]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        whole = load_types(tmp_path / "program").find("whole")
        data = to_json(decode(whole, bytes(range(12))))
        assert isinstance(data, dict)
        assert data["c"] == 0x0B0A0908
        if len(names) == 1:
            assert "struct ns::part is only declared here: give the linked program" in str(data["part"])
        else:
            assert data["part"] == {"a": 0x03020100, "b": 0x07060504}


@given(data=st.data())
def test_any_bytes_are_text(types: ElfTypes, data: st.DataObject) -> None:
    ctype = types.find(data.draw(st.sampled_from(["all", "both", "diamond"])))
    content = data.draw(st.binary(min_size=ctype.size, max_size=ctype.size))
    assert render(decode(ctype, content))
    to_json(decode(ctype, content))
