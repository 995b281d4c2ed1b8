"""Lists of buffers, cut, skipped and copied, and cursors that read and write them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, TypeAlias

from construct import ConstructError

from protocol.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from construct import Construct

IOV_MAX = os.sysconf("SC_IOV_MAX")
"""How many buffers preadv(2), sendmsg(2) and their like take at most."""

Layout: TypeAlias = "struct.Struct | Construct[Any, Any]"
"""What says how bytes are to be taken apart; a construct has a size of its own."""


# How it works: buffers are views of guest memory, and the guest may write to them at any time. A list of
# them is never copied byte by byte to be cut; slices of views are new views of the same memory, and keep
# the mapping. A cursor holds the chain's own list, which is cleared when the chain is published: a cursor
# that is kept longer has nothing to read, and keeps no memory.


class ChainError(Exception):
    """A chain is not what its device's type has: the driver's fault, in one line.

    One that leaves `run_queue()` breaks the queue, as a ring does that is broken: the others go on.
    """


def cut(buffers: Sequence[memoryview], size: int) -> list[memoryview]:
    """Return the buffers of the first `size` bytes, or of all where there are fewer."""
    taken = []
    for buffer in buffers:
        if size <= 0:
            break
        taken.append(buffer if size >= len(buffer) else buffer[:size])
        size -= len(buffer)
    return taken


def skip(buffers: Sequence[memoryview], size: int) -> list[memoryview]:
    """Return the buffers from the byte `size` on."""
    rest = []
    for buffer in buffers:
        if size < len(buffer):
            rest.append(buffer[size:] if size else buffer)
            size = 0
        else:
            size -= len(buffer)
    return rest


def copy(source: Sequence[memoryview], target: Sequence[memoryview], length: int) -> None:
    """Copy the first `length` bytes of `source` to the front of `target`; both have as many."""
    if len(source) == 1 and len(target) == 1:
        target[0][:length] = source[0][:length]
        return
    targets = iter(target)
    into = next(targets)
    at = 0
    for piece in source:
        taken = 0
        left = min(len(piece), length)
        length -= left
        while left:
            if at == len(into):
                into, at = next(targets), 0
            step = min(left, len(into) - at)
            into[at : at + step] = piece[taken : taken + step]
            at += step
            taken += step
            left -= step
        if not length:
            return


class _Cursor:
    """A place in a row of buffers. What is before it has been read or written."""

    __slots__ = ("_buffers", "_index", "_offset", "_position", "length")

    def __init__(self, buffers: Sequence[memoryview], length: int) -> None:
        self._buffers = buffers
        self._index = 0
        self._offset = 0
        self._position = 0
        self.length = length
        """Bytes of all the buffers together."""

    @property
    def remaining(self) -> int:
        """Bytes from here to the end."""
        return self.length - self._position

    @property
    def buffers(self) -> list[memoryview]:
        """The guest's own memory from here on, for preadv, pwritev and the like: no copy is made."""
        rest = list(self._buffers[self._index :])
        if rest and self._offset:
            rest[0] = rest[0][self._offset :]
        return rest

    def first(self, size: int) -> list[memoryview]:
        """Return the buffers of the next `size` bytes, or of what remains; go nowhere."""
        return cut(self.buffers, size)

    def advance(self, size: int) -> None:
        """Go `size` bytes on. Raises ValueError beyond the end."""
        if not 0 <= size <= self.remaining:
            raise ValueError(f"{plural(size, 'byte')} of {self.remaining} that remain")
        self._position += size
        self._offset += size
        while self._index < len(self._buffers) and self._offset >= len(self._buffers[self._index]):
            self._offset -= len(self._buffers[self._index])
            self._index += 1


class Readable(_Cursor):
    """The buffers that the driver filled, read from the front."""

    __slots__ = ()

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes (all that remain by default; fewer where fewer do), copied once.

        Copy before checking: the guest may change its memory at any time.
        """
        data = b"".join(self.first(self.remaining if size < 0 else size))
        self.advance(len(data))
        return data

    def unpack(self, layout: Layout) -> Any:
        """Return what the next bytes say by `layout`: a tuple for a struct.Struct. Raises ChainError."""
        size = sizeof(layout)
        data = self.read(size)
        if len(data) < size:
            raise ChainError(f"{plural(len(data), 'byte')} to read, where {size} are due")
        if isinstance(layout, struct.Struct):
            return layout.unpack(data)
        try:
            return layout.parse(data)
        except ConstructError as error:
            raise ChainError(" ".join(str(error).split())) from error


def sizeof(layout: Layout) -> int:
    """Return how many bytes a layout has. Raises TypeError for one that has not always as many."""
    if isinstance(layout, struct.Struct):
        return layout.size
    try:
        return int(layout.sizeof())
    except ConstructError:
        raise TypeError(f"{layout} has no size of its own; read its length first, then the rest") from None


class Writable(_Cursor):
    """The buffers that the device fills, from the front."""

    __slots__ = ()

    @property
    def written(self) -> int:
        """Bytes written so far; what `Chain.complete()` tells the driver."""
        return self._position

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Copy `data` in, as much as there is room for; return how many bytes that was."""
        source = memoryview(data).cast("B")
        done = 0
        for target in self.first(min(len(source), self.remaining)):
            target[:] = source[done : done + len(target)]
            done += len(target)
        self.advance(done)
        return done
