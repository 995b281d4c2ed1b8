"""Chain: one request of the driver, as its buffers in the guest's memory.

virtio 1.3, sections 2.6 (virtqueues) and 2.7.4 (message framing): a device sees the buffers it may
read, then those it may write, and nothing of how the driver cut them up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from vhost_user.buffers import Readable, Writable

if TYPE_CHECKING:
    from collections.abc import Sequence


class Completions(Protocol):
    """Who a chain tells that it is completed or put back: the queue that handed it out."""

    def completed(self, chain: Chain) -> None:
        """Publish a completed chain, now or with others."""

    def recheck(self) -> None:
        """Look again whether a state of the queue has come that somebody waits for."""


class Unattended:
    """Completions of a ring without a queue."""

    def completed(self, chain: Chain) -> None:
        """Do nothing: whoever took the chain pushes it."""

    def recheck(self) -> None:
        """Do nothing."""


class Chain:
    """One request: what can be read of it, what can be written, and its completion.

    Complete it with `complete()`, in any order and from any task; one that is never completed is
    lost to the driver. Once completed, its buffers are the driver's again, and the chain has none;
    nor has one of a queue that was taken from the device.
    """

    # How it works: the ring makes a chain while it walks the descriptors, and fills it in there and when it
    # records it, as an __init__ would double the cost of a request. It is in the ring's record until it is
    # published or rewound. `written` is both the length and the state: NOT_COMPLETED until complete() sets
    # it. The buffers are views into the guest's memory, and keep its mapping. They are cleared as soon as the
    # chain is published, in place, as cursors hold the same lists. Any task may complete, in the one thread.
    __slots__ = (
        "_completions",
        "_readable",
        "_writable",
        "entry",
        "head",
        "is_put_back",
        "number",
        "readable_buffers",
        "readable_length",
        "slots",
        "writable_buffers",
        "writable_length",
        "written",
    )

    head: int
    """What names it to the driver: the first descriptor's index, or in a packed ring the buffer id."""
    number: int
    """Which chain of the queue it is, counted from 0 at the queue's start."""
    readable_buffers: list[memoryview]
    """All buffers that the driver filled, read-only."""
    writable_buffers: list[memoryview]
    """All buffers for the device to fill."""
    readable_length: int
    """Bytes of `readable_buffers`."""
    writable_length: int
    """Bytes of `writable_buffers`."""
    written: int
    """Bytes that the device wrote, once it is completed; NOT_COMPLETED before."""
    is_put_back: bool
    """True once it was put back."""
    slots: int
    """Packed rings: how many descriptors of the ring it takes up."""
    entry: int
    """Packed rings: where the in-flight buffer keeps it."""
    _completions: Completions
    _readable: Readable | None
    _writable: Writable | None

    @property
    def completed(self) -> bool:
        """True once it was completed."""
        return self.written >= 0

    @property
    def readable(self) -> Readable:
        """The buffers that the driver filled."""
        if self._readable is None:
            self._readable = Readable(self.readable_buffers, self.readable_length)
        return self._readable

    @property
    def writable(self) -> Writable:
        """The buffers to fill."""
        if self._writable is None:
            self._writable = Writable(self.writable_buffers, self.writable_length)
        return self._writable

    def complete(self, written: int | None = None) -> None:
        """Give the chain back to the driver, with `written` bytes filled (by default what `writable` counts).

        Has no effect once the queue has been taken from the device, which happens when it does not
        finish in time. Raises RuntimeError for a chain that was completed before, ValueError for
        more bytes than the chain can hold.
        """
        if self.written >= 0:
            raise RuntimeError(f"{self!r} was completed before")
        if written is None:
            written = 0 if self._writable is None else self._writable.written
        elif not 0 <= written <= self.writable_length:
            raise ValueError(f"{written} bytes are not within the {self.writable_length} of {self!r}")
        self.written = written
        self._completions.completed(self)

    def put_back(self) -> None:
        """Leave the chain undone, for whoever serves the queue next; for a queue that is to stop.

        The queue's stop does not wait for its completion then. It can go back to the ring only if no chain
        that was taken after it has been published.
        """
        self.is_put_back = True
        self._completions.recheck()

    def drop_buffers(self) -> None:
        """Let go of the guest's memory, also where a cursor is kept."""
        self.readable_buffers.clear()
        self.writable_buffers.clear()

    def __repr__(self) -> str:
        return f"<Chain {self.head}: {self.readable_length} readable, {self.writable_length} writable>"


NOT_COMPLETED = -1

Batch: TypeAlias = "Sequence[Chain]"
"""What a ring hands out at once: chains in the order in which the driver made them available.

A sequence and no more: a ring may keep descriptors in flat arrays, and make a chain once it is asked for.
"""
