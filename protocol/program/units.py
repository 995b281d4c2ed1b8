"""Times, shares and rates as a user writes them, on command lines and in calls."""

from __future__ import annotations

import math
import re
from typing import Annotated, TypeAlias

_NUMBER = r"([0-9]+(?:\.[0-9]*)?(?:e-[0-9]+)?|\.[0-9]+)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_time(text: str) -> float:
    """Return the seconds that `20ms`, `500us`, `1.5s` or 0 is. Raises ValueError, in words for the user."""
    return _scaled(text, _SECONDS, "time", "20ms, 500us or 1.5s")


Seconds: TypeAlias = Annotated[float, parse_time]
"""An argument of a call that is a time: a number of seconds, or a text with its unit, as everywhere else."""


def parse_rate(text: str) -> float:
    """Return the rate that `10Mbit`, `64kbit` or 0 is. Raises ValueError, in words for the user."""
    return _scaled(text, _BITS, "rate", "10Mbit, 64kbit or 1Gbit")


def parse_share(text: str) -> float:
    """Return the share, from 0 to 1, that `5%` or `0.05` is. Raises ValueError, in words for the user.

    A 1 without a unit is refused: it might be meant as 1%.
    """
    text = text.strip()
    match = re.fullmatch(_NUMBER + "(%?)", text)
    if match is None:
        raise ValueError(f"'{text}' is not a share; write it as 5%, or 0.05")
    found = float(match[1]) / (100 if match[2] else 1)
    if found == 1 and not match[2]:
        raise ValueError(f"'{text}' may be 1% or 100%; write which")
    if found > 1:
        raise ValueError(f"'{text}' is not a share: one is from 0% to 100%, or below 1")
    return found


def _scaled(text: str, units: dict[str, float], kind: str, examples: str) -> float:
    """Return the number in `text` in the least of `units`. Without a unit its meaning is unknown."""
    match = re.fullmatch(f"{_NUMBER}({'|'.join(units)})|0", text.strip().lower())
    found = float(match[1] or 0) * units.get(match[2], 0) if match else math.inf
    if not math.isfinite(found):
        raise ValueError(f"'{text.strip()}' is not a {kind}; write it as {examples}")
    return found
