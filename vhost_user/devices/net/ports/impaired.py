"""A port with lines before it that may be bad ones: one from the guest, and one to it.

How it works: while a line is perfect, frames pass it without a copy, in the task of whoever has them. While
it is not, they are copied into it, and the task of the line (`DelayLine.run()`) delivers them when their
time has come, to the ports or receivers that exist then. `_receivers` holds those of the guest's pairs that
run. A change of the settings, by a call, takes effect with the next frame; what is under way keeps its
time, and is lost where the cable is pulled out or the program ends.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from protocol.virtio.net import HEADER
from vhost_user.devices.net.ports.backlog import Backlog
from vhost_user.devices.net.ports.impairments import NONE, Impairment, Impairments
from vhost_user.devices.net.ports.offload import MOST_OFFLOADS, check, finish, wire_bytes
from vhost_user.devices.net.ports.port import (
    MAX_FRAME,
    NetPort,
    Receiver,
    WrappedPort,
    as_bytes,
    with_header_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from protocol.virtio.features import Feature
    from protocol.virtio.net import NetFeature


class DelayLine:
    """A line whose frames are delivered when their time has come, as long as it is `run()`.

    While it is perfect, frames need not be put in, and are only to be counted with `passed()`.
    """

    def __init__(self, settings: Impairments, seed: str, deliver: Callable[[list[bytes]], None]) -> None:
        """Call `deliver()` with the frames that arrive."""
        self.line = Impairment(settings, seed=seed, size=wire_bytes)
        self._deliver = deliver
        self._sleeps_until = -math.inf
        self._changed = trio.lowlevel.ParkingLot()

    def passed(self) -> None:
        """Count a frame that was not put in."""
        counts = self.line.counts
        counts.sent += 1
        counts.arrived += 1

    def put(self, frames: Sequence[bytes]) -> None:
        """Put frames in."""
        now = trio.current_time()
        for frame in frames:
            self.line.put(frame, now)
        self._recheck()

    def change(self, settings: Impairments) -> None:
        """Do this to frames from now on."""
        self.line.change(settings, trio.current_time())
        self._recheck()

    async def run(self) -> None:
        """Deliver, until cancelled."""
        while True:
            next_time = self.line.next_time
            self._sleeps_until = math.inf if next_time is None else next_time
            with trio.move_on_at(self._sleeps_until):
                await self._changed.park()
            self._sleeps_until = -math.inf
            if frames := self.line.take(trio.current_time()):
                self._deliver(frames)

    def _recheck(self) -> None:
        next_time = self.line.next_time
        if next_time is not None and next_time < self._sleeps_until:
            self._changed.unpark_all()


class ImpairedPort(WrappedPort):
    """Around any port. What a guest sends goes over `from_guest`, what it gets over `to_guest`.

    A line that loses, repeats, damages or reorders frames, or is slow, carries them as a wire does: with
    checksums, and large segments cut up, so that one frame of what is lost is one there, too.
    """

    def __init__(
        self, inner: NetPort, *, from_guest: Impairments = NONE, to_guest: Impairments = NONE, seed: str = ""
    ) -> None:
        """Own `inner`. The same `seed` and the same frames give the same losses."""
        super().__init__(inner)
        self._what = f"the port {type(inner).__name__}"
        self.offloads = inner.offloads & MOST_OFFLOADS
        self._takes = 0  # a NetFeature, as a number: that is five times as quick
        self.from_guest = DelayLine(from_guest, f"{seed} from guest", self._send_on)
        self.to_guest = DelayLine(to_guest, f"{seed} to guest", self._give)
        self._receivers: dict[int, Backlog] = {}

    @property
    def lines(self) -> dict[str, DelayLine]:
        """Both lines, by name."""
        return {"from_guest": self.from_guest, "to_guest": self.to_guest}

    def set_features(self, features: Feature, header_size: int) -> None:
        """Note what the guest takes, and pass it on."""
        self._takes = int(features)
        super().set_features(features, header_size)

    def set_offloads(self, features: NetFeature) -> None:
        """Note what the guest takes, and pass it on."""
        self._takes = int(features)
        super().set_offloads(features)

    def set_link(self, up: bool) -> None:
        """Lose what is under way when the cable is pulled out."""
        if not up:
            self.from_guest.line.cut()
            self.to_guest.line.cut()
        super().set_link(up)

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        """Send a frame on, or put it into the line."""
        if not self.from_guest.line.is_perfect:
            try:
                self.from_guest.put(self.copied(buffers, length, self.from_guest.line))
            except ValueError:
                self.dropped_from_guest += 1
            return True
        if taken := self.inner.send(pair, buffers, length):
            self.from_guest.passed()
        return taken

    async def receive(self, pair: int, receiver: Receiver) -> None:
        """Let the port within give frames to the line, or to the guest."""
        backlog = self._receivers[pair] = Backlog(receiver, self.drop)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(backlog.run)
                await self.inner.receive(pair, _LineReceiver(self, backlog))
        finally:
            del self._receivers[pair]

    async def run(self) -> None:
        """Deliver what is delayed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.from_guest.run)
            nursery.start_soon(self.to_guest.run)
            await super().run()

    def drop(self) -> None:
        """Count a frame for the guest that it does not get."""
        self.dropped_to_guest += 1

    def copied(self, buffers: Sequence[memoryview], length: int, line: Impairment) -> list[bytes]:
        """Return a copy of a frame as those that a line is to carry. Raises ValueError: it is none."""
        frame = as_bytes(buffers, length, self.header_size)
        header, _ = check(frame[: HEADER.size], len(frame) - HEADER.size)
        frame = header + frame[HEADER.size :]
        return finish(frame) if line.settings.is_of_packets else [frame]

    def _send_on(self, frames: list[bytes]) -> None:
        for frame in frames:
            buffers, length = with_header_size([memoryview(frame)], len(frame), self.header_size)
            with self.own.code(self._what, "a frame is dropped"):
                if self.inner.send(0, buffers, length):
                    continue
            self.dropped_from_guest += 1
        with self.own.code(self._what, "others get frames late"):
            self.inner.flush(0)

    def _give(self, frames: list[bytes]) -> None:
        receiver = self._receivers[min(self._receivers)] if self._receivers else None
        for frame in frames:
            try:
                taken = self._as_taken(frame)
            except ValueError:
                taken = []
                self.drop()
            for each in taken:
                buffers, length = with_header_size([memoryview(each)], len(each), self.header_size)
                if receiver is None or not receiver.put(buffers, length):
                    self.drop()
        if receiver is not None:
            receiver.flush()

    def _as_taken(self, frame: bytes) -> list[bytes]:
        """Return a frame as the guest takes it, which may be another guest by now. Raises ValueError."""
        _, needed = check(frame[: HEADER.size], len(frame) - HEADER.size)
        return finish(frame) if needed & ~self._takes else [frame]


class _LineReceiver(Receiver):
    """What the port within gives frames to: the line, or while that is perfect the guest at once."""

    def __init__(self, port: ImpairedPort, receiver: Receiver) -> None:
        self._port = port
        self._line = port.to_guest
        self._receiver = receiver
        self._own: memoryview | None = None
        """The room that was returned last, where it is not the guest's."""

    def window(self) -> Sequence[memoryview] | None:
        return self._receiver.window() if self._is_direct() else self._room()

    def room(self, size: int) -> Sequence[memoryview] | None:
        return self._receiver.room(size) if self._is_direct() else self._room()

    def fill(self, size: int) -> None:
        if self._own is not None:
            self._put([self._own], size)
        else:
            self._receiver.fill(size)
            self._line.passed()

    def flush(self) -> None:
        self._receiver.flush()

    async def until_room(self, size: int = 1) -> bool:
        if self._line.line.is_perfect:
            return await self._receiver.until_room(size)
        await trio.lowlevel.checkpoint()
        return True

    def put(self, buffers: Sequence[memoryview], length: int) -> bool:
        if not self._line.line.is_perfect:
            self._put(buffers, length)
        elif self._receiver.put(buffers, length):
            self._line.passed()
        else:
            self._port.drop()
        return True

    def _is_direct(self) -> bool:
        self._own = None
        return self._line.line.is_perfect

    def _room(self) -> list[memoryview]:
        self._own = memoryview(bytearray(MAX_FRAME))
        return [self._own]

    def _put(self, buffers: Sequence[memoryview], length: int) -> None:
        try:
            self._line.put(self._port.copied(buffers, length, self._line.line))
        except ValueError:
            self._port.drop()
