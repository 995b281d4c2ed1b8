"""Ring: the configuration and the record of chains that both kinds of ring share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from protocol.virtio.features import Feature
from protocol.virtio.split import DESCRIPTOR_SIZE
from vhost_user.memory import BadAddressError, DirtyLogError, IotlbMissError
from vhost_user.ring import in_order
from vhost_user.ring.chain import NOT_COMPLETED, Unattended

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vhost_user.memory import GuestMemory
    from vhost_user.ring.chain import Batch, Chain, Completions

MAX_CHAIN = 1024
"""Descriptors in an indirect table; a ring that is larger may have as many as it has itself."""
MAX_CHAIN_BYTES = 0xFFFFFFFF
"""What a chain may hold, and what a used element can tell of (virtio 1.3, section 2.7.5.3)."""


class BrokenRingError(Exception):
    """The driver broke a rule of the ring, which is of no further use. One line that says which rule."""


@dataclass(frozen=True)
class RingConfig:
    """What the front-end said of a ring. Addresses are its user addresses, or IOVA with an IOTLB.

    A packed ring's `avail` is its driver area, `used` its device area. `big_endian` counts only
    without VERSION_1. With `only_read`, all of a chain with something readable is to be read.
    """

    size: int
    descriptors: int
    avail: int
    used: int
    features: int = Feature.VERSION_1
    big_endian: bool = False
    only_read: bool = False

    def has(self, feature: Feature) -> bool:
        """Tell whether a feature was negotiated."""
        return bool(self.features & feature)


Run: TypeAlias = tuple[int, int, memoryview]
"""A run of guest addresses: where it starts, how many bytes it has, and the memory there."""

NOWHERE: Run = (0, 0, memoryview(b""))


def buffers(memory: GuestMemory, address: int, length: int, write: bool) -> tuple[Run, list[memoryview]]:
    """Translate a descriptor the careful way: also where it is wrong, elsewhere, or in several pieces.

    Returns the run that holds the last of its buffers, where to look first next time, and its buffers.
    """
    if not length:
        raise BrokenRingError(f"a descriptor of zero length, at {address:#x}")
    views = memory.translate(address, length, write)
    window = memory.window(address + length - 1, write)
    return (window.start, len(window.view), window.view), views


def most_indirect(config: RingConfig) -> int:
    """Return the bytes that an indirect table may have: none without INDIRECT_DESC."""
    return DESCRIPTOR_SIZE * max(config.size, MAX_CHAIN) if config.has(Feature.INDIRECT_DESC) else 0


def indirect_table(memory: GuestMemory, address: int, length: int, most: int) -> bytes | memoryview:
    """Return an indirect table the careful way; it is read in place where it is in one piece."""
    if not most:
        raise BrokenRingError("an indirect descriptor, but INDIRECT_DESC was not negotiated")
    if not length or length % DESCRIPTOR_SIZE:
        raise BrokenRingError(f"an indirect table of {length} bytes, which must be a multiple of 16")
    if length > most:
        raise BrokenRingError(f"an indirect table of {length} bytes; {most} are possible")
    views = memory.translate(address, length, write=False)
    return views[0] if len(views) == 1 else b"".join(views)


def read_whole(batch: Batch) -> None:
    """Make readable what a driver calls writable behind something readable."""
    for chain in batch:
        if chain.writable_buffers and chain.readable_buffers:
            chain.readable_buffers += [view.toreadonly() for view in chain.writable_buffers]
            chain.readable_length += chain.writable_length
            chain.writable_buffers, chain.writable_length = [], 0


class Ring(ABC):
    """The device's side of a split or packed ring.

    All methods may raise BrokenRingError, after which the ring must not be used any more, and
    IotlbMissError, after which they can be called again: nothing was done.
    """

    # How it works: `_taken` is the record of all chains that were popped and are not given back, in the
    # order of their numbers: a dict, as it keeps an order and loses any of its keys at once. pop() adds to
    # it, push() and rewind() take from it. With IN_ORDER, push() gives back from its front only, up to the
    # first that is not completed: completed ones behind that stay in it, without buffers. A process that
    # dies leaves its state in the ring and in the in-flight file; the record is lost with it.

    def __init__(self, memory: GuestMemory, config: RingConfig) -> None:
        self.completions: Completions = Unattended()
        """Who is told of each chain that is completed or put back."""
        self.log_address: int | None = None
        """The guest address of the used ring in the dirty log; None while VHOST_VRING_F_LOG is off."""
        self._memory = memory
        self._config = config
        self._size = config.size
        self._event_index = config.has(Feature.EVENT_IDX)
        self._most_indirect = most_indirect(config)
        self._in_order = config.has(Feature.IN_ORDER)
        self._taken: dict[Chain, None] = {}
        self.popped = 0
        """How many chains were popped and not rewound: the next one's number."""
        self._in_use = 0
        self._fresh = 0
        """How many chains were popped that were not resubmitted."""
        self._pushed_before = False
        self.given_base: int | None = None
        """Where the front-end has it go on, where that cannot be, and it goes on elsewhere."""
        self._generation = memory.generation
        self._readable = self._writable = NOWHERE

    @property
    @abstractmethod
    def base(self) -> int:
        """What GET_VRING_BASE returns for the ring as it is now."""

    @abstractmethod
    def pop(self, limit: int) -> Batch:
        """Take at most `limit` chains that the driver made available; resubmitted ones come first."""

    def uncompleted(self) -> list[Chain]:
        """Return the chains that were taken and are not given back, oldest first; some may be completed."""
        return list(self._taken)

    def rewind(self, chains: Sequence[Chain]) -> None:
        """Undo the newest pops: the ring is as if these chains, oldest first, had never been taken.

        Those that were resubmitted stay in flight, and are popped first again.
        """
        fresh = min(len(chains), self._fresh)
        again = len(chains) - fresh
        self._fresh -= fresh
        self.popped -= len(chains)
        for chain in chains:
            del self._taken[chain]
            chain.drop_buffers()
        self._undo(chains[again:], chains[:again])

    @abstractmethod
    def _undo(self, fresh: Sequence[Chain], again: Sequence[Chain]) -> None:
        """Take back the taking of what the driver made available, and of what was resubmitted."""

    @abstractmethod
    def push(self, done: Sequence[Chain]) -> bool:
        """Give completed chains back, and drop their buffers. Returns whether the driver wants a call.

        Always so the first time: a process before us may have died before it could call.
        """

    @abstractmethod
    def want_kicks(self, on: bool) -> bool:
        """Ask the driver for kicks or ask it to leave them; True: chains became available meanwhile."""

    @abstractmethod
    def all_zero(self) -> bool:
        """Tell whether no bit of the driver's part of the ring is set."""

    def memory_changed(self) -> None:
        """Let go of memory that was taken away; if the ring was in it, its next use breaks it."""
        self._readable = self._writable = NOWHERE
        with contextlib.suppress(BrokenRingError, IotlbMissError):
            self._map()

    def close(self) -> None:
        """Let go of all memory. The ring can be used no longer, but still says where it is."""
        self._readable = self._writable = NOWHERE
        self._lose_parts()

    @abstractmethod
    def _find_parts(self) -> None:
        """Find the ring's parts in memory as it is now. Raises BadAddressError."""

    @abstractmethod
    def _lose_parts(self) -> None:
        """Refer to nothing that `_find_parts()` found, nor to the in-flight buffer."""

    def _map(self) -> None:
        generation = self._memory.generation
        try:
            self._find_parts()
        except IotlbMissError:
            raise
        except BadAddressError as error:
            raise BrokenRingError(f"a part of the ring is outside memory: {error}") from error
        self._readable = self._writable = NOWHERE
        self._generation = generation

    def _took(self, batch: Batch) -> None:
        """Fill in the rest of new chains, and record them in the order in which they were made available."""
        if self._config.only_read:
            read_whole(batch)
        number, completions = self.popped, self.completions
        for chain in batch:
            chain.number = number
            number += 1
            chain._completions = completions
            chain.written = NOT_COMPLETED
            chain.is_put_back = False
            chain._readable = chain._writable = None
        self.popped = number
        self._taken.update(dict.fromkeys(batch))

    def _prepare(self, done: Sequence[Chain]) -> Sequence[Chain]:
        """Log the device's writes, and return those chains that can be given back now.

        They are no longer in the record, and completed ones have no buffers any more.
        """
        if self._generation != self._memory.generation:
            self._map()
        if self._memory.log is not None:
            self._log_views(view for chain in done for view in chain.writable_buffers)
        taken = self._taken
        if self._in_order:
            done = in_order.give_back(taken, done)
        for chain in done:
            del taken[chain]
            chain.readable_buffers.clear()
            chain.writable_buffers.clear()
        return done

    def _log_views(self, views: Iterable[memoryview]) -> None:
        try:
            self._memory.mark_written(views)
        except DirtyLogError as error:
            raise BrokenRingError(str(error)) from error

    def _log_used(self, length: int) -> None:
        """Note that the device wrote to the part of the ring that the log address is for."""
        if self._memory.log is not None and self.log_address is not None:
            try:
                self._memory.log.mark(self.log_address, length)
            except DirtyLogError as error:
                raise BrokenRingError(str(error)) from error
