"""Words of a ring, of either byte order; each access is one load or one store."""

from __future__ import annotations

import sys
from typing import Literal, Protocol

# How it works: a word that the other side writes is loaded by an index into a cast view, which is one
# instruction. struct.pack_into() would show zeroes to a reader in between, and a slice may tear.


class Words(Protocol):
    """Indexed like a memoryview that was cast to 'H' or 'I', which it is for the machine's byte order."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class SwappedWords:
    """Words of the other byte order."""

    __slots__ = ("_size", "_words")

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._size = words.itemsize

    def __getitem__(self, index: int) -> int:
        return self._swap(self._words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = self._swap(value)

    def _swap(self, value: int) -> int:
        return int.from_bytes(value.to_bytes(self._size, "big"), "little")


def words(view: memoryview, kind: Literal["H", "I"], *, big_endian: bool = False) -> Words:
    """Return a view's whole words of `kind` 'H' or 'I', in a byte order."""
    size = 2 if kind == "H" else 4
    native = view[: len(view) // size * size].cast(kind)
    return SwappedWords(native) if big_endian != (sys.byteorder == "big") else native
