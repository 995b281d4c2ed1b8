"""Shares, times and rates as people write them: 5%, 20ms, 10Mbit."""

from __future__ import annotations

import re

_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def share(value: float | str) -> float:
    """Return a share: 0.05 or "5%". Raises ValueError, in words for the user."""
    if isinstance(value, str):
        match = re.fullmatch(_NUMBER + "(%?)", value)
        if match is None:
            raise ValueError(f"'{value}' is no share; write it as 5%, or 0.05")
        value = float(match[1]) / (100 if match[2] else 1)
    if not 0 <= value <= 1:
        raise ValueError(f"{value:g} is no share: one is from 0 to 1, or from 0% to 100%")
    return value


def seconds(value: float | str) -> float:
    """Return a time in seconds: 0.02 or "20ms". Raises ValueError, in words for the user."""
    return _scaled(value, _SECONDS, "time", "20ms, 500us or 1.5s")


def bits_per_second(value: float | str) -> float:
    """Return a rate in bits per second: 1e7 or "10Mbit"; 0 is no limit. Raises ValueError."""
    return _scaled(value, _BITS, "rate", "10Mbit, 64kbit or 1Gbit")


def _scaled(value: float | str, units: dict[str, float], kind: str, examples: str) -> float:
    if isinstance(value, str):
        match = re.fullmatch(f"{_NUMBER}({'|'.join(units)})|0", value.lower())
        if match is None:
            raise ValueError(f"'{value}' is no {kind}; write it as {examples}")
        return float(match[1] or 0) * units.get(match[2], 0)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{value:g} is no {kind}: it has to be 0 or more")
    return value
