"""Chain: one request of the driver, as its buffers in the guest's memory.

virtio 1.2, sections 2.6 (virtqueues) and 2.7.4 (message framing): a device sees the buffers it may
read, then those it may write, and nothing of how the driver cut them up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

from construct import ConstructError

from protocol.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from construct import Construct

    from vhost_user.queue import Virtqueue
    from vhost_user.ring import Element


Layout: TypeAlias = "struct.Struct | Construct[Any, Any]"
"""What says how bytes are to be taken apart; a construct has a size of its own."""


class ChainError(Exception):
    """A chain is not what its device's type has: the driver's fault, in one line.

    One that leaves `run_queue()` breaks the queue, as a ring does that is broken: the others go on.
    """


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
        taken = []
        for buffer in self.buffers:
            if size <= 0:
                break
            taken.append(buffer if size >= len(buffer) else buffer[:size])
            size -= len(buffer)
        return taken

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


class Chain:
    """One request: what can be read of it, what can be written, and its completion.

    Complete it with `complete()`, in any order and from any task; one that is never completed is
    lost to the driver. Once completed, its buffers are the driver's again, and the chain has none;
    nor has one of a queue that was taken from the device.
    """

    # A queue fills it in, which costs half as much as an __init__.
    __slots__ = ("_readable", "_writable", "completed", "element", "is_put_back", "number", "queue")

    queue: Virtqueue
    """Where it is from."""
    element: Element
    """The chain as it is in the ring."""
    number: int
    """Which chain of the queue it is, counted from 0 at the queue's start."""
    completed: bool
    """True once it was completed."""
    is_put_back: bool
    """True once it was put back."""
    _readable: Readable | None
    _writable: Writable | None

    @classmethod
    def row(cls, queue: Virtqueue, elements: list[Element], number: int) -> list[Chain]:
        """Return the chains of `elements`, in their order; `number` is the first one's."""
        chains = []
        for element in elements:
            chain = cls()
            chain.queue = queue
            chain.element = element
            chain.number = number
            chain.completed = chain.is_put_back = False
            chain._readable = chain._writable = None
            chains.append(chain)
            number += 1
        return chains

    @property
    def readable(self) -> Readable:
        """The buffers that the driver filled."""
        if self._readable is None:
            self._readable = Readable(self.element.readable, self.element.readable_length)
        return self._readable

    @property
    def writable(self) -> Writable:
        """The buffers to fill."""
        if self._writable is None:
            self._writable = Writable(self.element.writable, self.element.writable_length)
        return self._writable

    def complete(self, written: int | None = None) -> None:
        """Give the chain back to the driver, with `written` bytes filled (by default what `writable` counts).

        Has no effect once the queue has been taken from the device, which happens when it does not
        finish in time. Raises RuntimeError for a chain that was completed before, ValueError for
        more bytes than the chain can hold.
        """
        if self.completed:
            raise RuntimeError(f"{self!r} was completed before")
        element = self.element
        if written is None:
            written = 0 if self._writable is None else self._writable.written
        elif not 0 <= written <= element.writable_length:
            raise ValueError(f"{written} bytes are not within the {element.writable_length} of {self!r}")
        self.completed = True
        self.queue.give_back(self, written)

    def put_back(self) -> None:
        """Leave the chain undone, for whoever serves the queue next; for a queue that is to stop.

        Nobody waits for its completion then. It can go back to the ring only if no chain that was
        taken after it has been completed.
        """
        self.is_put_back = True
        self.queue.recheck()

    def __repr__(self) -> str:
        element = self.element
        return (
            f"<Chain {element.head}: {element.readable_length} readable, {element.writable_length} writable>"
        )
