"""What split and packed rings share: their configuration, their elements, how they break."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.memory import GuestMemory, Window

MAX_CHAIN = 1024
"""Descriptors in an indirect table; a ring that is larger may have as many as it has itself."""
MAX_CHAIN_BYTES = 0xFFFFFFFF
"""What a chain may hold, and what a used element can tell of (virtio 1.2, section 2.7.5.3)."""


class BrokenRingError(Exception):
    """The driver broke a rule of the ring, which is of no further use. One line that says which rule."""


class Element(NamedTuple):
    """A chain of descriptors that the driver made available, checked and translated."""

    head: int
    """What names it to the driver: the first descriptor's index, or in a packed ring the buffer id."""
    readable: list[memoryview]
    """Buffers that the driver filled, read-only."""
    writable: list[memoryview]
    """Buffers for the device to fill."""
    readable_length: int
    writable_length: int
    slots: int
    """Descriptors of a packed ring that it takes up; 1 in a split ring."""
    entry: int
    """Where the in-flight buffer keeps it, in a packed ring."""


@dataclass(frozen=True)
class RingConfig:
    """What the front-end said of a ring. Addresses are its user addresses, or IOVA with an IOTLB.

    A packed ring's `avail` is its driver area, `used` its device area. `big_endian` counts only
    without VERSION_1.
    """

    size: int
    descriptors: int
    avail: int
    used: int
    features: int = Feature.VERSION_1
    big_endian: bool = False

    def has(self, feature: Feature) -> bool:
        """Tell whether a feature was negotiated."""
        return bool(self.features & feature)


class Ring(Protocol):
    """The device's side of a split or packed ring.

    All methods may raise BrokenRingError, after which the ring must not be used any more, and
    IotlbMissError, after which they can be called again: nothing was done.
    """

    log_address: int | None
    """The guest address of the used ring in the dirty log; None while VHOST_VRING_F_LOG is off."""

    @property
    def base(self) -> int:
        """What GET_VRING_BASE returns for the ring as it is now."""

    def pop(self, limit: int) -> list[Element]:
        """Take at most `limit` chains that the driver made available; resubmitted ones come first."""

    def push(self, done: Sequence[tuple[Element, int]]) -> bool:
        """Give chains back with the bytes written to each. Returns whether the driver wants a call."""

    def want_kicks(self, on: bool) -> bool:
        """Ask the driver for kicks or ask it to leave them; True: chains became available meanwhile."""

    def all_zero(self) -> bool:
        """Tell whether no bit of the driver's part of the ring is set."""


class InOrder:
    """Holds completed elements back until all that came before them are completed (VIRTIO_F_IN_ORDER)."""

    def __init__(self) -> None:
        self._taken: deque[Element] = deque()
        self._done: dict[int, int] = {}

    def took(self, batch: Sequence[Element]) -> None:
        """Note elements in the order the driver made them available."""
        self._taken.extend(batch)

    def release(self, done: Sequence[tuple[Element, int]]) -> list[tuple[Element, int]]:
        """Return those that may be given back, now that `done` are completed."""
        self._done.update((id(element), written) for element, written in done)
        ready = []
        while self._taken and id(self._taken[0]) in self._done:
            element = self._taken.popleft()
            ready.append((element, self._done.pop(id(element))))
        return ready


def buffers(memory: GuestMemory, address: int, length: int, write: bool) -> tuple[Window, list[memoryview]]:
    """Translate a descriptor the careful way: also where it is wrong, elsewhere, or in several pieces.

    Returns its buffers, and the window that held the last of them, where to look first next time.
    """
    if not length:
        raise BrokenRingError(f"a descriptor of zero length, at {address:#x}")
    views = memory.translate(address, length, write)
    return memory.window(address + length - 1, write), views


def indirect_table(memory: GuestMemory, address: int, length: int, limit: int) -> bytes | memoryview:
    """Return an indirect table, which is read in place where it is in one piece."""
    if not length or length % 16:
        raise BrokenRingError(f"an indirect table of {length} bytes, which must be a multiple of 16")
    if length // 16 > limit:
        raise BrokenRingError(f"an indirect table of {length // 16} descriptors; {limit} are possible")
    views = memory.translate(address, length, write=False)
    return views[0] if len(views) == 1 else b"".join(views)
