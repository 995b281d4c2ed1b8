"""The ELF view against rustc: what it wrote into an object is what decoding it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivshmem_server.elf.ctypes.decode import decode
from ivshmem_server.elf.ctypes.model import Record
from ivshmem_server.elf.ctypes.render import render, to_json
from ivshmem_server.elf.lookup import ElfTypes, load_types
from tests.ivshmem_server.elf.programs import compile_rust, decoded, object_bytes

if TYPE_CHECKING:
    from pathlib import Path

# Debian 12's rustc takes discriminants of enums with data for an experiment.
SOURCE = """
#![feature(arbitrary_enum_discriminant)]
use std::num::NonZeroU32;
use std::convert::Infallible;
pub enum Shape { Empty, Circle(u32), Rect { w: u16, h: u16 } }
#[repr(u8)] pub enum Mode { Idle = 1, Busy = 7 }
#[repr(i8)] pub enum Signed { Below(u8) = -5, Above(u16) = 5 }
pub enum Single { Only(u32) }
pub enum Never {}
pub union Word { pub whole: u32, pub bytes: [u8; 4] }
pub struct All {
    pub head: u32, pub unit: (), pub nothing: [(); 3], pub phantom: std::marker::PhantomData<Shape>,
    pub number: Option<u32>, pub no_number: Option<u32>,
    pub reference: Option<&'static u32>, pub nonzero: Option<NonZeroU32>, pub no_nonzero: Option<NonZeroU32>,
    pub flag: Option<bool>, pub no_flag: Option<bool>, pub letter: Option<char>, pub no_letter: Option<char>,
    pub nested: Option<Option<bool>>, pub no_mode: Option<Mode>, pub a_mode: Option<Mode>, pub mode: Mode,
    pub good: Result<u8, Shape>, pub bad: Result<u8, Shape>, pub sure: Result<u32, Infallible>,
    pub shapes: [Shape; 3], pub below: Signed, pub above: Signed, pub single: Single,
    pub tuple: (u8, u32), pub text: &'static str, pub slice: &'static [u16], pub boxed: Option<Box<u32>>,
    pub wide: Option<u128>, pub order: Option<std::cmp::Ordering>, pub word: Word, pub call: fn(u8) -> u8,
    pub never: Option<Never>, pub tail: i16,
}
unsafe impl Sync for All {}
fn same(a: u8) -> u8 { a }
#[no_mangle] pub static ALL: All = All {
    head: 7, unit: (), nothing: [(), (), ()], phantom: std::marker::PhantomData,
    number: Some(5), no_number: None,
    reference: None, nonzero: NonZeroU32::new(9), no_nonzero: None,
    flag: Some(false), no_flag: None, letter: Some('x'), no_letter: None,
    nested: Some(None), no_mode: None, a_mode: Some(Mode::Busy), mode: Mode::Idle,
    good: Ok(1), bad: Err(Shape::Circle(77)), sure: Ok(4),
    shapes: [Shape::Rect { w: 3, h: 4 }, Shape::Empty, Shape::Circle(1)],
    below: Signed::Below(2), above: Signed::Above(300), single: Single::Only(8),
    tuple: (1, 2), text: "hey", slice: &[1, 2], boxed: None,
    wide: Some(1 << 100), order: Some(std::cmp::Ordering::Less), word: Word { whole: 0x01020304 }, call: same,
    never: None, tail: -3,
};
"""


def some(value: Any) -> dict[str, Any]:
    return {"Some": {"__0": value}}


NONE: dict[str, Any] = {"None": {}}
ALL = {
    "head": 7,
    "unit": {},
    "number": some(5),
    "no_number": NONE,
    "reference": NONE,
    "flag": some(value=False),
    "no_flag": NONE,
    "letter": some(ord("x")),
    "no_letter": NONE,
    "nested": some(NONE),
    "no_mode": NONE,
    "a_mode": some("Busy"),
    "mode": "Idle",
    "no_nonzero": NONE,
    "good": {"Ok": {"__0": 1}},
    "bad": {"Err": {"__0": {"Circle": {"__0": 77}}}},
    "sure": {"Ok": {"__0": 4}},
    "shapes": [{"Rect": {"w": 3, "h": 4}}, {"Empty": {}}, {"Circle": {"__0": 1}}],
    "below": {"Below": {"__0": 2}},
    "above": {"Above": {"__0": 300}},
    "single": {"Only": {"__0": 8}},
    "tuple": {"__0": 1, "__1": 2},
    "boxed": NONE,
    "wide": some(1 << 100),
    "order": some("Less"),
    "word": {"whole": 0x01020304, "bytes": [4, 3, 2, 1]},
    "never": NONE,
    "tail": -3,
}


@pytest.fixture(scope="module", params=[[], ["-Cdwarf-version=5"]], ids=["", "dwarf5"])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_rust(tmp_path_factory.mktemp("elf"), SOURCE, *request.param)


@pytest.fixture(scope="module")
def types(elf: Path) -> ElfTypes:
    return load_types(elf)


def test_struct_with_every_kind_of_enum(elf: Path) -> None:
    found = decoded(elf, "All", "ALL")
    assert isinstance(found, dict)
    assert {key: found[key] for key in ALL} == ALL
    assert isinstance(found["text"], dict)
    assert found["text"].keys() == {"data_ptr", "length"}
    assert found["text"]["length"] == 3
    assert isinstance(found["slice"], dict)
    assert found["slice"]["length"] == 2


def test_enum_is_shown_by_its_active_variant(elf: Path, types: ElfTypes) -> None:
    shape, everything = types.find("Shape"), types.find("All")
    assert isinstance(everything, Record)
    content, place = object_bytes(elf, "ALL"), everything.member("shapes").offset
    rect, empty = (decode(shape, content, place + i * shape.size) for i in range(2))
    assert [line.split("  ", 1)[1] for line in render(rect).splitlines()[1:]] == [
        "Rect",
        "  u16 w = 3",
        "  u16 h = 4",
    ]
    assert render(empty).splitlines()[1].split("  ", 1)[1] == "Empty"


def test_discriminant_of_no_variant(types: ElfTypes) -> None:
    value = decode(types.find("Signed"), b"\x63\0\1\0")
    assert "no variant has the discriminant 99 (0x63)" in render(value)
    assert to_json(value) == {"unknown discriminant": 99}


@given(data=st.data())
def test_any_bytes_are_text(types: ElfTypes, data: st.DataObject) -> None:
    ctype = types.find(data.draw(st.sampled_from(["All", "Shape", "Signed", "Single", "Option<u128>"])))
    content = data.draw(st.binary(min_size=ctype.size, max_size=ctype.size))
    assert render(decode(ctype, content))
    to_json(decode(ctype, content))
