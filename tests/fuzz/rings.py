"""Any bytes in a ring, its buffers and its in-flight buffer, while a device works and the driver writes.

An input is 8 bytes that say what the ring is, as many bytes as the third of them says for what is done
with it, the in-flight buffer if there is one, and what is in the guest's memory from address 0 on, where
the ring is. `RingInput` says what each of them means.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from protocol.vhost_user import inflight
from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from tests.fuzz.guest import NEIGHBOUR, RING, USER, GuardedFile, GuardedGuest
from tests.fuzz.harness import DefectError
from vhost_user.memory import (
    PAGE_SHIFT,
    BadAddressError,
    DirtyLog,
    IotlbMissError,
    guest_address_of,
    map_shared,
)
from vhost_user.ring import BrokenRingError, PackedRing, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.ring import Chain, Ring

SIZES = {"split": [8, 4, 2, 1, 16, 3, 0, 32768], "packed": [8, 4, 3, 1, 16, 7, 0, 32768]}
OPTIONS = (Feature.EVENT_IDX, Feature.IN_ORDER, Feature.INDIRECT_DESC, Feature.NOTIFY_ON_EMPTY)
LEGACY, BIG_ENDIAN, LOGGED, IOMMU = 0x10, 0x20, 0x40, 0x80
TRACKED, SMALL_LOG = 1, 2
HEADER = struct.Struct("<BBBBI")

POP, PUSH, KICKS, STOP, SCRIBBLE, TABLE, KILL, CHANGE = range(8)
"""What is done: the lower three bits of a byte; the upper five say how much."""

_LOG_BYTES = 0x20
_EDGE = 0x7FF8
"""A log address just before the end of what a log of one byte, SMALL_LOG, is for."""
_TRACKER_BYTES = 0x1000
_MOST_RESOLVED = 40
_GRANULE = 0x400
"""Bytes that the IOMMU maps at a time; borders of regions are multiples of it."""

_T = TypeVar("_T")


class RingInput(NamedTuple):
    """An input, taken apart."""

    features: int
    size: int
    flags: int
    switches: int
    base: int
    steps: bytes
    inflight: bytes
    memory: bytes


def take_apart(kind: str, data: bytes) -> RingInput:
    """Say what the bytes of an input mean."""
    flags, size, switches, count, base = HEADER.unpack(data[: HEADER.size].ljust(HEADER.size, b"\0"))
    rest = data[HEADER.size :]
    entries = SIZES[kind][size % 8]
    features = sum(int(option) for bit, option in enumerate(OPTIONS) if flags >> bit & 1)
    if kind == "packed" or not flags & LEGACY:
        features |= Feature.VERSION_1
    kept = inflight.queue_bytes(entries, packed=kind == "packed") if switches & TRACKED else 0
    return RingInput(
        features,
        entries,
        flags,
        switches,
        base,
        rest[:count],
        rest[count : count + min(kept, _TRACKER_BYTES)],
        rest[count + min(kept, _TRACKER_BYTES) :],
    )


def parts_of(kind: str, size: int) -> tuple[int, int, int, int]:
    """Return where the ring's parts begin, and where it ends."""
    if kind == "split":
        parts = split.layout(size)
        return parts.table, parts.avail, parts.used, parts.end
    end = packed.DESCRIPTOR_SIZE * size
    return 0, end, end + 4, end + 8


def _tracker_bytes(kind: str, given: RingInput) -> int:
    return inflight.queue_bytes(given.size, packed=kind == "packed")


class RingTarget:
    """A device that does what inputs say, on memory that is used again for every one of them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._guest = GuardedGuest()
        self._tracker = GuardedFile(_TRACKER_BYTES)
        self._log = GuardedFile(_LOG_BYTES)

    def run(self, data: bytes) -> None:
        """Fail unless all there is to see of the ring is chains within memory, or BrokenRingError."""
        given = take_apart(self._kind, data)
        guest = self._guest
        table, avail, used, end = parts_of(self._kind, given.size)
        own = [(used, end - used)]
        if self._kind == "packed":
            own.append((table, avail - table))
        guest.begin(given.memory, own)
        self._tracker.begin(given.inflight, min(max(_tracker_bytes(self._kind, given), 1), _TRACKER_BYTES))
        self._log.begin(b"", 1 if given.switches & SMALL_LOG else _LOG_BYTES)
        guest.memory.use_iotlb(bool(given.flags & IOMMU))
        if given.flags & LOGGED:
            guest.memory.log = DirtyLog(self._log.file.dup(), self._log.size, self._log.offset)
        try:
            _Run(self._kind, guest, given, self._part(given), self._log).run()
        except (BrokenRingError, BadAddressError) as error:
            if len(str(error).splitlines()) != 1:
                raise DefectError(f"not in one line: {str(error)!r}") from error
        finally:
            guest.memory.use_iotlb(False)
            guest.memory.log = None
        guest.check()
        self._tracker.check()
        self._log.check()

    def _part(self, given: RingInput) -> memoryview | None:
        if not given.switches & TRACKED:
            return None
        with self._tracker.file.dup() as fd:
            return map_shared(fd, self._tracker.size, self._tracker.offset)


class _Run:
    """One input on its way."""

    def __init__(
        self, kind: str, guest: GuardedGuest, given: RingInput, part: memoryview | None, log: GuardedFile
    ) -> None:
        self._guest = guest
        self._memory = guest.memory
        self._given = given
        self._part = part
        self._log = log
        self._class = SplitRing if kind == "split" else PackedRing
        table, avail, used, _ = parts_of(kind, given.size)
        # Without an IOMMU these are user addresses; with one, I/O virtual ones from 0 on.
        base = 0 if given.flags & IOMMU else USER
        big_endian = bool(given.flags & BIG_ENDIAN)
        self._config = RingConfig(
            given.size, base + table, base + avail, base + used, given.features, big_endian=big_endian
        )
        self._used = used
        self._held: list[Chain] = []
        self._popped: list[Chain] = []
        """All that were taken since the ring was started, in order."""
        self._resolved = 0
        self._start(given.base)

    def run(self) -> None:
        """Take the steps of the input, or those of any device where it says none."""
        steps = iter(self._given.steps or bytes([KICKS | 8, POP | 0xF8, PUSH | 0x38] * 3))
        actions: dict[int, Callable[[int, Iterator[int]], None]] = {
            POP: self._pop,
            PUSH: self._push,
            KICKS: self._kicks,
            STOP: self._stop,
            SCRIBBLE: self._scribble,
            TABLE: self._table,
            KILL: self._kill,
            CHANGE: self._change,
        }
        for step in steps:
            actions[step & 7](step >> 3, steps)

    def _start(self, base: int) -> None:
        self._held, self._popped = [], []
        self._ring: Ring = self._patiently(lambda: self._class(self._memory, self._config, base, self._part))
        self._ring.log_address = _EDGE if self._given.switches & SMALL_LOG else self._used

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """Do something, and have the front-end say what it has to."""
        while True:
            try:
                return action()
            except IotlbMissError as miss:
                self._resolve(miss)

    def _resolve(self, miss: IotlbMissError) -> None:
        self._resolved += 1
        start = miss.iova // _GRANULE * _GRANULE
        if self._resolved > _MOST_RESOLVED or start >= NEIGHBOUR.guest_address + NEIGHBOUR.size:
            raise BadAddressError(str(miss)) from None
        region = RING if start < RING.size else NEIGHBOUR
        user = region.user_address + start - region.guest_address
        self._memory.update_iotlb(start, _GRANULE, user, 3)

    def _pop(self, amount: int, _: Iterator[int]) -> None:
        batch = self._patiently(lambda: self._ring.pop(amount + 1))
        if len(batch) > amount + 1:
            raise DefectError(f"{len(batch)} chains, where {amount + 1} were asked for")
        for chain in batch:
            self._check(chain)
        self._held += batch
        self._popped += batch
        if len(self._held) > self._given.size:
            raise DefectError(f"{len(self._held)} chains of a ring of {self._given.size}")

    def _check(self, chain: Chain) -> None:
        for view in chain.writable_buffers:
            self._guest.offset_of(view)
        views = [*chain.readable_buffers, *chain.writable_buffers]
        lengths = sum(map(len, chain.readable_buffers)), sum(map(len, chain.writable_buffers))
        if not all(views) or any(not view.readonly for view in chain.readable_buffers):
            raise DefectError("an empty buffer, or one to read that can be written")
        if lengths != (chain.readable_length, chain.writable_length) or sum(lengths) > 0xFFFF_FFFF:
            raise DefectError(f"{lengths} bytes in a chain that says otherwise")
        if any(view.obj not in self._mappings() for view in views):
            raise DefectError("a buffer of memory that is not the guest's")

    def _mappings(self) -> list[object]:
        return [window.view.obj for window in self._memory.regions]

    def _push(self, amount: int, _: Iterator[int]) -> None:
        count = (amount & 7) + 1
        done, self._held = self._held[:count], self._held[count:]
        if amount & 8:
            done.reverse()
        for number, chain in enumerate(done):
            for view in chain.writable_buffers:
                self._guest.fill(view, 0xD0 + number)
            chain.written = 0 if amount & 16 else chain.writable_length
        views = [view for chain in done for view in chain.writable_buffers]
        self._patiently(lambda: self._ring.push(done))
        if self._memory.log is not None:
            self._check_log(views)

    def _check_log(self, views: list[memoryview]) -> None:
        bits = self._log.content()
        for view in views:
            address = guest_address_of(view)
            for page in range(address >> PAGE_SHIFT, (address + len(view) - 1 >> PAGE_SHIFT) + 1):
                if not bits[page >> 3] >> (page & 7) & 1:
                    raise DefectError(f"page {page:#x} was written to, and is not in the log")

    def _kicks(self, amount: int, _: Iterator[int]) -> None:
        self._patiently(lambda: self._ring.want_kicks(bool(amount & 1)))

    def _stop(self, _amount: int, _: Iterator[int]) -> None:
        """Put the newest back that are still held, and go on at the base; the others are lost."""
        back: list[Chain] = []
        while self._popped and any(self._popped[-1] is chain for chain in self._held):
            back.insert(0, self._popped.pop())
        self._ring.rewind(back)
        self._start(self._ring.base)

    def _scribble(self, _amount: int, steps: Iterator[int]) -> None:
        """Write 16 bits somewhere, as a driver that changes its mind."""
        low, high, *value = (next(steps, 0) for _ in range(4))
        self._guest.scribble((low | high << 8) % RING.size, bytes(value))

    def _table(self, _amount: int, _: Iterator[int]) -> None:
        """Have the same memory mapped elsewhere."""
        for chain in self._held:
            for view in chain.writable_buffers:
                self._guest.offset_of(view)
        self._guest.set_table()

    def _kill(self, _amount: int, _: Iterator[int]) -> None:
        """Start as if another process had died: at the base of the beginning."""
        self._start(self._given.base)

    def _change(self, amount: int, _: Iterator[int]) -> None:
        if amount & 1:
            self._memory.invalidate_iotlb((amount >> 1) * _GRANULE, _GRANULE)
        elif amount & 2:
            self._memory.log = None
        else:
            self._ring.all_zero()
