"""A bad line: it loses, delays, reorders, repeats and damages frames, and is slow.

Nothing here knows of tasks, clocks or guests: frames and times go in, and frames come out when their
time has come. What happens follows from a seed.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_FRAMES = 4096
MOST_BYTES = 16 << 20
"""What one line holds at most; frames beyond that are dropped."""

QUEUE_BYTES = 256 << 10
"""How much waits at most for a line of limited rate: as in a router, frames beyond that are dropped."""

SMOOTH_RATE = 250e6
"""Bits per second from which on it makes no difference whether a large segment comes at once or in packets:
it takes 2 ms, and timers are not much more exact."""

_SHARES = ("loss", "duplicate", "corrupt", "reorder")
_HEADER = 12
"""Bytes before the frame itself, which are not damaged. On a wire, preamble and checksum are as many."""


@dataclass(frozen=True)
class Impairments:
    """What one direction of a line does to the frames on it. Raises ValueError for what cannot be."""

    loss: float = 0.0
    """The share of frames that are lost, from 0 to 1; likewise the other shares."""
    duplicate: float = 0.0
    """The share of frames that come twice."""
    corrupt: float = 0.0
    """The share of frames of which one bit is wrong."""
    delay: float = 0.0
    """How long a frame is under way, in seconds."""
    jitter: float = 0.0
    """By how much the delay differs at most, both ways, in seconds. Frames do not overtake each other."""
    reorder: float = 0.0
    """The share of frames that are not delayed, and so overtake those before them."""
    rate: float = 0.0
    """Bits per second; 0 for no limit."""

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name):g}; a share is from 0 to 1, or 0% to 100%")
        for name in ("delay", "jitter", "rate"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name):g}; it has to be 0 or more")
        if self.jitter > self.delay:
            raise ValueError(
                f"jitter ({self.jitter:g} s) is more than the delay ({self.delay:g} s) that it is to vary"
            )
        if self.reorder and not self.delay:
            raise ValueError("reorder needs a delay: frames overtake others by not being delayed")

    def __bool__(self) -> bool:
        return self != NONE

    @property
    def is_of_packets(self) -> bool:
        """True where each packet of a large segment fares by itself; otherwise one may pass as a whole."""
        by_chance = self.loss or self.duplicate or self.corrupt or self.reorder
        return bool(by_chance) or 0 < self.rate < SMOOTH_RATE


NONE = Impairments()
"""A perfect line."""


@dataclass
class LineCounts:
    """What became of the frames of a line."""

    sent: int = 0
    """Frames that were put in."""
    arrived: int = 0
    """Frames that came out."""
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    overrun: int = 0
    """Frames that were dropped because too many were held, or waited for a line of limited rate."""
    cut_off: int = 0
    """Frames that were under way when the link went down."""


@dataclass
class _Dice:
    """A row of random numbers for each kind of impairment: one does not change what another one does."""

    seed: str
    _rows: dict[str, Random] = field(default_factory=dict)

    def row(self, kind: str) -> Random:
        if kind not in self._rows:
            self._rows[kind] = Random(f"{self.seed} {kind}")
        return self._rows[kind]

    def hits(self, kind: str, share: float) -> bool:
        return share > 0 and self.row(kind).random() < share


class Impairment:
    """One direction of a line: frames are put in, and come out in their time.

    First it loses, damages and repeats; then it delays; at its end frames queue for the rate. A frame
    is bytes, with the 12 of the virtio-net header in front. The caller's clock must not go back.
    """

    def __init__(
        self, settings: Impairments = NONE, *, seed: str = "", size: Callable[[bytes], int] = len
    ) -> None:
        """Let frames take up `size()` bytes of a line of limited rate."""
        self.settings = settings
        self._size = size
        self.counts = LineCounts()
        self._dice = _Dice(seed)
        # Under way: when it is through, a number that keeps the order, the frame. A heap.
        self._delayed: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._newest = -math.inf
        """When the last frame is through that was not to overtake others."""
        # Waiting for the rate, and when the first one has gone.
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._gone = 0.0
        self._held_bytes = 0

    @property
    def held(self) -> int:
        """How many frames are in it."""
        return len(self._delayed) + len(self._queue)

    @property
    def held_bytes(self) -> int:
        """How many bytes the frames have that are in it."""
        return self._held_bytes

    @property
    def is_perfect(self) -> bool:
        """True where a frame that is put in comes out at once, and as it is: it need not be put in."""
        return not (self.settings or self._delayed or self._queue)

    def put(self, frame: bytes, now: float) -> None:
        """Put a frame in."""
        self.counts.sent += 1
        settings, dice = self.settings, self._dice
        if dice.hits("loss", settings.loss):
            self.counts.lost += 1
            return
        if dice.hits("corrupt", settings.corrupt):
            self.counts.corrupted += 1
            frame = _with_a_wrong_bit(frame, dice.row("bit"))
        self._delay(frame, now)
        if dice.hits("duplicate", settings.duplicate):
            self.counts.duplicated += 1
            self._delay(frame, now)

    def take(self, now: float) -> list[bytes]:
        """Take out the frames whose time has come, in the order in which they arrive."""
        arrived: list[bytes] = []
        while self._delayed and self._delayed[0][0] <= now:
            through, _, frame = heapq.heappop(self._delayed)
            self._take_queued(through, arrived)
            self._enqueue(frame, through)
        self._take_queued(now, arrived)
        self.counts.arrived += len(arrived)
        return arrived

    @property
    def next_time(self) -> float | None:
        """When to look again with `take()`; None while nothing is in it."""
        times = [self._delayed[0][0]] if self._delayed else []
        if self._queue:
            times.append(self._gone)
        return min(times, default=None)

    def change(self, settings: Impairments, now: float) -> None:
        """Do this to frames from now on. Those that are held need not wait longer than new ones would."""
        self.settings = settings
        latest = now + settings.delay + settings.jitter
        self._delayed = [(min(through, latest), number, frame) for through, number, frame in self._delayed]
        heapq.heapify(self._delayed)
        self._newest = min(self._newest, latest)
        if self._queue:
            self._gone = min(self._gone, now + self._seconds(self._queue[0]))

    def cut(self) -> None:
        """Drop the frames that are in it."""
        self.counts.cut_off += self.held
        self._delayed = []
        self._queue.clear()
        self._newest = -math.inf
        self._queue_bytes = self._held_bytes = 0

    def _delay(self, frame: bytes, now: float) -> None:
        if self.held >= MOST_FRAMES or self._held_bytes + len(frame) > MOST_BYTES:
            self.counts.overrun += 1
            return
        settings = self.settings
        if self._dice.hits("reorder", settings.reorder):
            self.counts.reordered += 1
            through = now
        else:
            jitter = settings.jitter and settings.jitter * self._dice.row("jitter").uniform(-1, 1)
            through = self._newest = max(self._newest, now + settings.delay + jitter)
        heapq.heappush(self._delayed, (through, self._number, frame))
        self._number += 1
        self._held_bytes += len(frame)

    def _enqueue(self, frame: bytes, now: float) -> None:
        """Let a frame that is through wait until those before it have gone."""
        if self._queue and self._queue_bytes + len(frame) > QUEUE_BYTES:
            self.counts.overrun += 1
            self._held_bytes -= len(frame)
            return
        if not self._queue:
            self._gone = now + self._seconds(frame)
        self._queue.append(frame)
        self._queue_bytes += len(frame)

    def _take_queued(self, now: float, arrived: list[bytes]) -> None:
        queue = self._queue
        while queue and self._gone <= now:
            frame = queue.popleft()
            self._queue_bytes -= len(frame)
            self._held_bytes -= len(frame)
            arrived.append(frame)
            if queue:
                self._gone += self._seconds(queue[0])

    def _seconds(self, frame: bytes) -> float:
        """Return how long a frame takes up the line."""
        return self._size(frame) * 8 / self.settings.rate if self.settings.rate else 0.0


def _with_a_wrong_bit(frame: bytes, dice: Random) -> bytes:
    if len(frame) <= _HEADER:
        return frame
    damaged = bytearray(frame)
    damaged[dice.randrange(_HEADER, len(frame))] ^= 1 << dice.randrange(8)
    return bytes(damaged)
