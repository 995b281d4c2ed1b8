"""What the driver's side of split and packed rings have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio.features import Feature
from protocol.virtio.split import DescriptorFlag

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class RingFullError(Exception):
    """The ring has not enough free descriptors: wait until some are used."""


class Buffer(NamedTuple):
    """Memory that the device is to read or write, by the address at which the device finds it."""

    address: int
    length: int


class Used(NamedTuple):
    """A chain that the device has given back."""

    token: object
    """What `add()` was given."""
    written: int
    """Bytes that the device says it wrote."""


class Table(NamedTuple):
    """Memory for an indirect table: where the device finds it, and a view of at least 16 bytes a buffer."""

    address: int
    view: memoryview


@dataclass(eq=False)
class Pending:
    """A chain that the device has."""

    token: object
    head: int
    """The first descriptor, or in a packed ring the buffer id."""
    writable_length: int
    slots: list[int] = field(default_factory=list)
    """Split: the descriptors it takes up; packed: as many numbers as it takes up descriptors."""


class DriverRing(ABC):
    """The driver's side of one ring, at views of its parts, which it clears to begin with."""

    def __init__(self, size: int, features: int) -> None:
        self.size = size
        self._event_index = bool(features & Feature.EVENT_IDX)
        self._is_in_order = bool(features & Feature.IN_ORDER)
        self._pending: dict[int, Pending] = {}

    @property
    @abstractmethod
    def free(self) -> int:
        """Descriptors that are free."""

    @abstractmethod
    def add(
        self,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        token: object = None,
        *,
        table: Table | None = None,
    ) -> None:
        """Write a chain into the ring, or into `table` (INDIRECT_DESC); the device sees it with `publish()`.

        Raises RingFullError, and ValueError for a chain without buffers or a table too small.
        """

    @abstractmethod
    def publish(self) -> bool:
        """Let the device see what was added. Returns whether it wants a kick."""

    @abstractmethod
    def used(self) -> list[Used]:
        """Return what the device has given back since the last time, in its order.

        Raises RuntimeError where the device broke the ring.
        """

    @abstractmethod
    def want_calls(self, on: bool, *, after: int = 0) -> bool:
        """Ask the device for calls or ask it to leave them; True: something was used meanwhile.

        With EVENT_IDX it may skip the next `after` uses: chains in a split ring, descriptors in a packed one.
        """

    @property
    @abstractmethod
    def base(self) -> int:
        """What SET_VRING_BASE tells a back-end that is to begin with the first chain not taken back."""

    @abstractmethod
    def notification_data(self, queue: int) -> int:
        """Return what a driver writes to notify the device, with NOTIFICATION_DATA (section 2.9)."""

    @property
    def pending(self) -> list[object]:
        """Tokens of the chains that the device has, in the order they were added."""
        return [pending.token for pending in self._pending.values()]

    def _take_back(self, head: int, written: int) -> Iterator[tuple[Pending, int]]:
        """Yield the chain that a used element names, after those before it that IN_ORDER implies."""
        if head not in self._pending:
            raise RuntimeError(f"the device used {head}, which it does not have")
        while self._is_in_order:
            first = next(iter(self._pending))
            if first == head:
                break
            skipped = self._pending.pop(first)
            yield skipped, skipped.writable_length
        yield self._pending.pop(head), written


def described(readable: Sequence[Buffer], writable: Sequence[Buffer]) -> list[tuple[int, int, int]]:
    """Return (address, length, flags) of the descriptors of a chain, NEXT aside. Raises ValueError."""
    rows = [(address, length, 0) for address, length in readable]
    rows += [(address, length, int(DescriptorFlag.WRITE)) for address, length in writable]
    if not rows:
        raise ValueError("a chain needs a buffer")
    return rows
