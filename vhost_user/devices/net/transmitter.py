"""QueueTransmitter: frames of a tx queue go to a port (virtio 1.3, section 5.1.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from vhost_user.devices.net.ports.frames import (
    ETHERNET_HEADER,
    LARGEST_ACKNOWLEDGEMENT,
    only_acknowledges,
)
from vhost_user.devices.net.ports.port import MAX_FRAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.devices.net.ports.frames import Counters
    from vhost_user.devices.net.ports.port import NetPort
    from vhost_user.own_code.containment import Containment
    from vhost_user.queue import Virtqueue
    from vhost_user.ring import Batch, Chain

BATCH = 32
"""How many frames the guest sends before it may have their buffers back: a few hundred microseconds."""

MOST_LATE = 16
LATE_SECONDS = 0.01
"""How many acknowledgements are completed late at most, and how late."""


class QueueTransmitter:
    """Sends the frames of one queue, and completes them.

    To complete a frame costs the guest an interrupt. No one waits for that of a frame that only
    acknowledges what TCP has got, so it is not completed alone: rather with other frames, or when the
    guest is told of frames that have come for it (`complete_late()`). A guest that receives much data
    is interrupted half as often thus.
    """

    def __init__(
        self,
        queue: Virtqueue,
        port: NetPort,
        pair: int,
        counters: Counters,
        link_up: Callable[[], bool],
        *,
        own: Containment,
    ) -> None:
        """Send over `pair` of `port`, and count in `counters`; without a link, frames are dropped.

        So is a frame for which the port raises an exception, which `own` contains.
        """
        self._queue = queue
        self._port = port
        self._pair = pair
        self._counters = counters
        self._link_up = link_up
        self._own = own
        self._what = f"the port {type(port).__name__}"
        self._late: list[tuple[Chain, int]] = []
        self._is_late = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Send until the queue is to stop; everything that was sent is completed then."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._complete_in_time)
                await self._transmit()
                nursery.cancel_scope.cancel()
        finally:
            self.complete_late()

    def complete_late(self) -> None:
        """Complete what waits for something else to be completed with."""
        if self._late:
            late, self._late = self._late, []
            self._queue.complete_together(late)
            self._queue.flush()

    async def _complete_in_time(self) -> None:
        while True:
            while not self._late:
                await self._is_late.park()
            await trio.sleep(LATE_SECONDS)
            self.complete_late()

    async def _transmit(self) -> None:
        async for batch in self._queue.batches(BATCH):
            rest = self._send(batch)
            while rest:
                with self._queue.until_stop() as scope:
                    if not await self._is_sendable():
                        rest = self._drop_first(rest)
                if scope.cancelled_caught:
                    for chain in rest:
                        chain.put_back()
                    return
                rest = self._send(rest)

    async def _is_sendable(self) -> bool:
        """Wait until the port takes frames; False where it fails at that."""
        with self._own.code(self._what, "a frame of the guest's is dropped"):
            await trio.lowlevel.checkpoint()  # a port may say at once that it can send, and then not send
            await self._port.until_sendable(self._pair)
            return True
        return False

    def _drop_first(self, rest: Batch) -> Batch:
        self._counters.dropped += 1
        self._queue.complete_together([(rest[0], 0)])
        return rest[1:]

    def _send(self, batch: Batch) -> Batch:
        """Send frames, and complete them; return those that the port cannot take now."""
        port, counters = self._port, self._counters
        is_up = self._link_up()
        header = port.header_size
        least = header + ETHERNET_HEADER
        sent = frames = size = 0
        for chain in batch:
            length = chain.readable_length
            try:
                if not is_up or not least <= length <= MAX_FRAME:
                    counters.dropped += 1
                elif taken := port.send(self._pair, chain.readable_buffers, length):
                    frames += 1
                    size += length - header
                elif taken is None:
                    raise TypeError("send() has returned None: True is for a frame that it is done with")
                else:
                    break
            except Exception as error:
                counters.dropped += 1
                self._own.failed(self._what, "a frame of the guest's is dropped", error)
            sent += 1
        counters.frames += frames
        counters.bytes += size
        try:
            port.flush(self._pair)
        except Exception as error:
            self._own.failed(self._what, "others get frames late", error)
        self._complete(batch[:sent], header)
        if sent < len(batch):
            self.complete_late()
            self._queue.flush()
        return batch[sent:]

    def _complete(self, sent: Batch, header: int) -> None:
        done = [(chain, 0) for chain in sent]
        if len(self._late) + len(sent) <= MOST_LATE and all(_can_be_late(chain, header) for chain in sent):
            self._late += done
            self._is_late.unpark_all()
        else:
            self._queue.complete_together(self._late + done)
            self._late = []


def _can_be_late(chain: Chain, header: int) -> bool:
    if chain.readable_length > header + LARGEST_ACKNOWLEDGEMENT:
        return False
    return only_acknowledges(b"".join(chain.readable_buffers)[header:])
