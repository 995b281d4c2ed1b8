"""Times, shares and rates: what each text means, and which are refused, as nobody knows what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.program.units import parse_rate, parse_share, parse_time

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5%", 0.05),
        ("0.05", 0.05),
        (".5%", 0.005),
        ("100%", 1.0),
        ("1%", 0.01),
        ("0", 0.0),
        ("1e-05", 1e-5),
        (" 5%", 0.05),
    ],
)
def test_shares(text: str, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("20ms", 0.02), ("500us", 0.0005), ("1.5s", 1.5), ("0", 0), ("0s", 0), (" 3s", 3), ("20MS", 0.02)],
)
def test_times(text: str, value: float) -> None:
    assert parse_time(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("10Mbit", 1e7), ("64kbit", 64e3), ("1gbit", 1e9), ("300bit", 300), ("0", 0)]
)
def test_rates(text: str, value: float) -> None:
    assert parse_rate(text) == pytest.approx(value)


@pytest.mark.parametrize("read", [parse_share, parse_time, parse_rate])
@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e9", "10 ms", "٣%", "٣s", "nan", "20", "1m", "9" * 400 + "s"]
)
def test_what_is_none(read: Callable[[str], float], text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (share|time|rate)"):
        read(text)


@pytest.mark.parametrize("text", ["1", "1.0", "1.00"])
def test_share_that_may_mean_two_things(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' may be 1% or 100%; write which"):
        parse_share(text)


@given(st.floats(1, 1e6))
def test_number_without_a_unit_is_no_time_and_no_rate(number: float) -> None:
    for read in (parse_time, parse_rate):
        with pytest.raises(ValueError, match="write it as"):
            read(str(number))
