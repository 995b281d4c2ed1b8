"""A receiver that keeps some frames for a guest that has given no room for them yet.

How it works: senders call `put()`, which goes to the guest at once while nothing is kept. Once a frame is
kept, all that follow are, so that none overtakes it, until `run()` has given the guest the last one.
`run()` is the only one that takes frames out, and the task in which a guest that gives no room is waited
for. Frames are copies; those that are kept when the task is cancelled are lost.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from vhost_user.devices.net.ports.port import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_FRAMES = 1024
MOST_BYTES = 4 << 20
"""What is kept at most for one guest's queue: some segments of 64 KiB, which fill its ring by themselves."""


class Backlog(Receiver):
    r"""Around the receiver of a guest. Where `put()` returns False, the frame is to be dropped.

    Frames stay in order. No sender waits for the guest; `run\(\)` has to run meanwhile.
    """

    def __init__(self, receiver: Receiver, dropped: Callable[[], None]) -> None:
        """Call `dropped()` for each frame that is dropped after it was kept."""
        self._receiver = receiver
        self._dropped = dropped
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._changed = trio.lowlevel.ParkingLot()

    def window(self) -> Sequence[memoryview] | None:
        """Return buffers for a frame of any size; None while others wait."""
        return None if self._frames else self._receiver.window()

    def room(self, size: int) -> Sequence[memoryview] | None:
        """Return buffers for a frame; None while others wait."""
        return None if self._frames else self._receiver.room(size)

    def fill(self, size: int) -> None:
        """Give the guest a frame."""
        self._receiver.fill(size)

    def flush(self) -> None:
        """Show the guest what it was given."""
        self._receiver.flush()

    async def until_room(self, size: int = 1) -> bool:
        """Wait until those that wait have gone, and for room then."""
        while self._frames:
            await self._changed.park()
        return await self._receiver.until_room(size)

    def put(self, buffers: Sequence[memoryview], length: int) -> bool:
        """Copy a frame to the guest, or keep it; False: as much is kept as can be."""
        if not self._frames and self._receiver.put(buffers, length):
            return True
        if len(self._frames) >= MOST_FRAMES or self._bytes + length > MOST_BYTES:
            return False
        self._frames.append(b"".join(buffers)[:length])
        self._bytes += length
        self._changed.unpark_all()
        return True

    async def run(self) -> None:
        """Give the guest what is kept as soon as it has room; cancelled in the end."""
        while True:
            while not self._frames:
                await self._changed.park()
            frame = self._frames[0]
            if self._receiver.put([memoryview(frame)], len(frame)):
                self._forget_first()
            elif not await self._receiver.until_room(len(frame)):
                self._dropped()
                self._forget_first()
            if not self._frames:
                self._receiver.flush()

    def _forget_first(self) -> None:
        self._bytes -= len(self._frames.popleft())
        if not self._frames:
            self._changed.unpark_all()
