"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivshmem_server.sizes import format_about, format_size, parse_size, round_up_to_power_of_two


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("1K", 1024),
        ("4m", 4 << 20),
        ("4G", 4 << 30),
        ("5G", 5 << 30),
        ("2GiB", 2 << 30),
        ("1.5 MiB", 3 << 19),
        ("2TB", 2 << 40),
        (" 64 ", 64),
        ("7E", 7 << 60),
        ("12B", 12),
    ],
)
def test_readable_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-4M", "4X", "M", "4 M M", "0.0001K", "8E", "0x1000", "1e6", "NaN"]
)
def test_unreadable_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}'"):
        parse_size(text)


@given(st.integers(1, (1 << 63) - 1))
def test_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size).removesuffix("ytes").removesuffix("yte")) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (25276514304, "23.5 GiB"),
        (2**70 - 1, "1023.9 EiB"),
    ],
)
def test_size_about(size: int, text: str) -> None:
    assert format_about(size) == text


@given(st.integers(1, 1 << 62))
def test_rounding_goes_to_the_next_power_of_two(size: int) -> None:
    rounded = round_up_to_power_of_two(size)
    assert rounded & rounded - 1 == 0
    assert size <= rounded < 2 * size
