"""Sizes of shared memory as people write them, such as 4M, 1.5GiB and 4194304."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTPE]?)(?:I?B)?\s*", re.IGNORECASE)
_PREFIXES = "KMGTPE"
_MAX = 1 << 63
"""The kernel counts a file's size in 63 bits."""


def parse_size(text: str) -> int:
    """Return the bytes that `text` says: a number with K, M, G, T, P or E (powers of 1024), also as KiB.

    Raises ValueError, in words for the user, where it is not a size, zero, negative, no whole number of
    bytes or beyond 63 bits.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a size; write a number with K, M, G or T, as in 4M")
    whole, _, decimals = match[1].partition(".")
    denominator: int = 10 ** len(decimals)
    power = _PREFIXES.index(match[2].upper()) + 1 if match[2] else 0
    size, rest = divmod(int(whole + decimals) << 10 * power, denominator)
    if rest:
        raise ValueError(f"'{text}' is not a whole number of bytes")
    if not 0 < size < _MAX:
        raise ValueError(f"'{text}' is {'zero' if not size else 'more than 63 bits can count'}")
    return size


def format_size(size: int) -> str:
    """Return `size` bytes as people write it, exactly: "4 MiB", "4097 bytes"."""
    for power in range(len(_PREFIXES), 0, -1):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power} {_PREFIXES[power - 1]}iB"
    return "1 byte" if size == 1 else f"{size} bytes"


def format_about(size: int) -> str:
    """Return `size` bytes to one decimal, rounded down: "23.5 GiB"."""
    power = max(0, min((size.bit_length() - 1) // 10, len(_PREFIXES)))
    if not power:
        return format_size(size)
    tenths = size * 10 >> 10 * power
    return f"{tenths // 10}.{tenths % 10} {_PREFIXES[power - 1]}iB"


def round_up_to_power_of_two(size: int) -> int:
    """Return the smallest power of two that is not below `size`: QEMU aborts on any other size."""
    return 1 << (size - 1).bit_length()
