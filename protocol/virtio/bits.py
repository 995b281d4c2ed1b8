"""Bits: a word of flags that keeps unknown bits, and prints known ones by name."""

from __future__ import annotations

from enum import KEEP, IntFlag
from typing import Self


class Bits(IntFlag, boundary=KEEP):
    """A word of flags in which any bit may be set; `str()` names its bits: `VERSION_1|bit 5`."""

    def __str__(self) -> str:
        names = {member.value: name for name, member in type(self).__members__.items()}
        bits = (1 << bit for bit in range(self.value.bit_length()) if self.value >> bit & 1)
        return "|".join(names.get(bit, f"bit {bit.bit_length() - 1}") for bit in bits) or names.get(0, "0")

    def without(self, others: int) -> Self:
        """Return the bits that are set here and not in `others`."""
        return type(self)(self.value & ~int(others))
