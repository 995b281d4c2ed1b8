"""A table of figures: ours, the other one's, their ratio, and what was expected."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Table:
    """Collects rows, then prints them under a title. Figures are medians in `unit`."""

    def __init__(self, title: str, unit: str, *, other: str = "C server") -> None:
        """`other` is the name under which the figures to compare with come."""
        self._title = f"{title} ({unit})"
        self._other = other
        self._rows: list[tuple[str, ...]] = [("", "ours", other, "ratio", "expected", "")]

    def row(
        self,
        name: str,
        samples: Mapping[str, Sequence[float]],
        *,
        expected: float | None = None,
        expected_ratio: float | None = None,
        least_ratio: float | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Add the medians of `samples["ours"]` and the other one's; either may be missing.

        Less than `expected`, or than `expected_ratio`, is expected of ours, as a figure and as a multiple
        of the other one's; at least `least_ratio` where more is better. `notes` says by name what
        went wrong.
        """
        mine, theirs = _median(samples, "ours"), _median(samples, self._other)
        ratio = mine / theirs if mine is not None and theirs else None
        remarks = [f"{who}: {what}" for who, what in (notes or {}).items()]
        too_small = ratio is not None and least_ratio is not None and ratio < least_ratio
        if _exceeds(mine, expected) or _exceeds(ratio, expected_ratio) or too_small:
            remarks.insert(0, "MISSED")
        figures = (_figure(mine), _figure(theirs), _figure(ratio, "x"))
        least = "" if least_ratio is None else f">= {least_ratio:g}x"
        limit = _limit(expected) or _limit(expected_ratio, "x") or least
        self._rows.append((name, *figures, limit, "; ".join(remarks)))

    def print(self) -> None:
        """Print the table."""
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        print(f"\n{self._title}")
        for name, *figures, remarks in self._rows:
            cells = [name.ljust(widths[0])]
            cells += [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=False)]
            print("  ".join((*cells, remarks)).rstrip(), flush=True)


def _median(samples: Mapping[str, Sequence[float]], name: str) -> float | None:
    return median(samples[name]) if samples.get(name) else None


def _exceeds(figure: float | None, limit: float | None) -> bool:
    return figure is not None and limit is not None and figure >= limit


def _limit(value: float | None, suffix: str = "") -> str:
    return "" if value is None else f"< {value:g}{suffix}"


def _figure(value: float | None, suffix: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{suffix}"
