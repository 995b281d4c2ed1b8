"""Reports on their way to the guest's driver, and the description of an input device."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from protocol.virtio.input import U_SIZE, ConfigSelect, DevIds, Event, encode_bits
from protocol.virtio.input_codes import BUS_VIRTUAL, EventType, Syn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from protocol.virtio.input import AbsInfo

SYN_REPORT = Event(EventType.SYN, Syn.REPORT, 0)

_REPEATED = 2
"""What a key's value is when it has been down for some time; the driver may not know that it is."""


@dataclass(frozen=True)
class Description:
    """What a driver can ask an input device for (virtio 1.3, section 5.8.4)."""

    name: str
    """At most 128 bytes of UTF-8 are shown; Linux takes the first 64."""
    serial: str = ""
    ids: DevIds = field(default_factory=lambda: DevIds(bustype=BUS_VIRTUAL))
    properties: frozenset[int] = frozenset()
    events: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """The codes of each type of event: those that it sends, and those (LED, REP) that it understands."""
    axes: Mapping[int, AbsInfo] = field(default_factory=dict)
    """The range of each code of type ABS."""

    def answer(self, select: int, subsel: int) -> bytes:
        """Return what the driver asks for; nothing where there is no such information."""
        if select == ConfigSelect.EV_BITS:
            return encode_bits(self.events.get(subsel, ()))
        if select == ConfigSelect.ABS_INFO:
            return self.axes[subsel].encode() if subsel in self.axes else b""
        if subsel:
            return b""
        if select == ConfigSelect.PROP_BITS:
            return encode_bits(self.properties)
        if select == ConfigSelect.ID_DEVIDS:
            return self.ids.encode()
        texts: dict[int, str] = {ConfigSelect.ID_NAME: self.name, ConfigSelect.ID_SERIAL: self.serial}
        return texts.get(select, "").encode(errors="surrogateescape")[:U_SIZE]


class _Report:
    """Events that belong together, the last of them SYN_REPORT. Raises LocalProtocolError for none."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = deque([*events, SYN_REPORT])
        for event in self.events:
            event.encode()  # or the driver's queue would find out
        self.is_over = trio.Event()


class Reports:
    """Reports that wait for the driver's buffers, the oldest first.

    Each reaches the driver as a whole, or not at all: one that has begun is finished, also across a
    pause of the guest, unless the driver begins again.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Keep at most `limit` reports that have not begun, and drop the oldest for newer ones."""
        self.ready = trio.Event()
        """Set once a driver has given buffers for events."""
        self.is_open = False
        """Whether a driver's queue of events runs."""
        self.keys: set[int] = set()
        """Keys and buttons that are down as far as the driver knows."""
        self.dropped = 0
        """How many reports were dropped for want of buffers."""
        self._limit = limit
        self._waiting: deque[_Report] = deque()
        self._begun: _Report | None = None
        self._changed = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """Return how many reports are not delivered."""
        return len(self._waiting) + (self._begun is not None)

    def post(self, events: Iterable[Event]) -> None:
        """Add a report of `events`, after which a SYN_REPORT is sent; do not wait until it is delivered.

        Raises LocalProtocolError for an event with a number that does not fit, as `send()` does.
        """
        self._add(_Report(events))

    async def send(self, events: Iterable[Event]) -> None:
        """Add a report of `events`, as `post()` does; wait until the driver has all of it, or began again."""
        report = _Report(events)
        self._add(report)
        await report.is_over.wait()

    async def drained(self) -> None:
        """Wait until no report is left."""
        while len(self):
            await self._changed.park()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Set `is_open` for the length of the block."""
        self.is_open = True
        self._changed.unpark_all()
        try:
            yield
        finally:
            self.is_open = False

    async def until_open(self) -> None:
        """Wait until a driver's queue of events runs."""
        while not self.is_open:
            await self._changed.park()

    def begin_again(self) -> None:
        """Note a new driver: drop the rest of a report whose beginning another one got."""
        self.keys.clear()
        if self._begun is not None:
            self._end_begun()

    async def event(self) -> Event:
        """Wait for the next event; it stays the next one until `taken()` is called."""
        while self._begun is None and not self._waiting:
            await self._changed.park()
        return (self._begun or self._waiting[0]).events[0]

    def taken(self) -> None:
        """Go on to the event after the one that `event()` returned."""
        if self._begun is None:
            self._begun = self._waiting.popleft()
        event = self._begun.events.popleft()
        if event.type == EventType.KEY and event.value != _REPEATED:
            (self.keys.add if event.value else self.keys.discard)(event.code)
        if not self._begun.events:
            self._end_begun()

    def _add(self, report: _Report) -> None:
        self._waiting.append(report)
        if self._limit is not None and len(self._waiting) > self._limit:
            self._waiting.popleft().is_over.set()
            self.dropped += 1
        self._changed.unpark_all()

    def _end_begun(self) -> None:
        assert self._begun is not None
        self._begun.is_over.set()
        self._begun = None
        self._changed.unpark_all()
