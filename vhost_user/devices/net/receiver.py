"""QueueReceiver: an rx queue is filled with frames (virtio 1.3, sections 5.1.6.3 and .4).

How it works: three parties use a receiver. The port calls it, from `receive()` of its pair or, in a network
of ours, from the task of another guest; `run()` takes chains when one of those waits; `Net` stops it when
the link goes down. All are in one thread and nothing awaits between `window()` or `room()` and `fill()`, so
what was returned stays the guest's until then.

A chain is in one of three places: in the ring; in `_stock`, taken and empty; completed, visible to the
guest at `flush()`. A frame larger than the stock is held in `_spare` from `fill()` on: `_waiting_size` is
its size then, and there is no room for others until the driver has given the rest, or ROOM_SECONDS are
over. At the end the stock goes back to the ring, and a frame in `_spare` is lost, as on a wire.
"""

from __future__ import annotations

import logging
import math
import struct
from typing import TYPE_CHECKING

import trio

from protocol.program.warnings import OnceLogger
from protocol.virtio.net import (
    GSO_ECN,
    GSO_TYPE_OFFSET,
    LEGACY_HEADER_SIZE,
    NUM_BUFFERS_OFFSET,
    NetFeature,
    header_size,
)
from protocol.words import plural
from vhost_user.buffers import copy, skip
from vhost_user.devices.net.ports.frames import ETHERNET_HEADER, FILTERED_BYTES, tag_bytes
from vhost_user.devices.net.ports.port import MAX_FRAME, ROOM_SECONDS, Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhost_user.devices.net.ports.frames import Counters, Filter
    from vhost_user.queue import Virtqueue
    from vhost_user.ring import Batch, Chain

_NUM_BUFFERS = struct.Struct("<H")

_log = logging.getLogger("vhost_user.net")


class QueueReceiver(Receiver):
    """Has chains in stock, and completes as many of them as a frame fills.

    With MRG_RXBUF a frame may go over several chains, otherwise it has to fit into one. Those that
    are in stock in the end go back into the queue: `put_back()`.
    """

    def __init__(self, queue: Virtqueue, wanted: Filter, counters: Counters, mtu: int | None = None) -> None:
        """Serve `queue`, leave out what `wanted` does not want, count in `counters`; `run()` runs beside.

        With an `mtu`, frames beyond it are dropped that are not segments of TCP or UDP in one.
        """
        self.is_stopped = False
        """True while the guest is to get nothing: there is no room then."""
        self.flushed: Callable[[], None] = lambda: None
        """Called when the guest was told of frames: something else may be told of together with them."""
        self._queue = queue
        self._filter = wanted
        self._counters = counters
        self._merges = bool(queue.features & NetFeature.MRG_RXBUF)
        self._knows_flags = bool(queue.features & NetFeature.GUEST_CSUM)
        self._header_size = header_size(queue.features)
        # Shorter buffers are of no use. Merged ones may be of any length.
        self._least = 1 if self._merges else self._header_size + ETHERNET_HEADER
        self._mtu = mtu
        self._longest = MAX_FRAME if mtu is None else self._header_size + ETHERNET_HEADER + mtu
        self._stock: list[Chain] = []
        # The buffers of all that is in stock, with MRG_RXBUF; otherwise of the first chain.
        self._buffers: list[memoryview] = []
        self._bytes = 0
        # For the rest of a frame that is larger than the stock, and until there is more: its size.
        self._spare = memoryview(bytearray(MAX_FRAME))
        self._waiting_size = 0
        self._spare_from = 0
        self._once = OnceLogger(_log, 1)
        self._wanted = trio.Event()
        self._asks = False
        self._more = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Get more chains from the driver when somebody waits for them, until the queue is to stop."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            self._asks = True
            if not await self._queue.available():
                return
            self._asks = False
            self._add(self._queue.take_now())
            self._more.unpark_all()

    def put_back(self) -> None:
        """Show the guest what was filled, and put back what was not; the queue is to stop."""
        self.flush()
        for chain in self._stock:
            chain.put_back()
        self._stock, self._buffers, self._bytes = [], [], 0

    # Receiver

    def window(self) -> Sequence[memoryview] | None:
        """Return buffers for a frame of any size."""
        has_enough = self._has(MAX_FRAME if self._merges else 1)
        if not has_enough and (self.is_stopped or self._waiting_size or not self._stock):
            return None
        return self._buffers if self._bytes >= MAX_FRAME else [*self._buffers, self._spare]

    def room(self, size: int) -> Sequence[memoryview] | None:
        """Return buffers for a frame of `size` bytes."""
        if not self._has(size if self._merges else 1):
            return None
        return self._buffers if self._bytes >= size else [*self._buffers, self._spare]

    def fill(self, size: int) -> None:
        """Give the guest the frame in what was returned last."""
        if size > self._bytes:
            if self._merges:
                self._waiting_size, self._spare_from = size, self._bytes
            else:
                self._drop("the buffers that the driver gives")
        elif size > self._longest and self._exceeds_mtu(size):
            self._drop(f"the guest's MTU, which is {self._mtu}")
        elif self._filter.is_open or self._filter.wants(self._front()):
            self._complete(size)
        else:
            self._counters.filtered += 1

    def flush(self) -> None:
        """Show the guest what was filled."""
        self._queue.flush()
        self.flushed()

    async def until_room(self, size: int = 1) -> bool:
        """Wait for room; where the guest may never give it, for ROOM_SECONDS at most."""
        self.flush()
        bounded = size > 1 or self._waiting_size
        with trio.move_on_after(ROOM_SECONDS if bounded else math.inf) as scope:
            while not self._has(size if self._merges else 1):
                self._wanted.set()
                await self._more.park()
        if scope.cancelled_caught and self._waiting_size:
            self._waiting_size = 0
            self._drop("the buffers that the driver gives")
        return not scope.cancelled_caught

    # The stock

    def _has(self, size: int) -> bool:
        """Put at least `size` bytes in stock, if the driver has given as much."""
        while self._bytes < size and not self._asks:
            chains = self._queue.take_now()
            if not chains:
                break
            self._add(chains)
        if self._waiting_size and self._bytes >= self._waiting_size:
            self._finish_waiting()
        return self._bytes >= size and not self._waiting_size and not self.is_stopped

    def _add(self, chains: Batch) -> None:
        for chain in chains:
            if chain.writable_length < self._least:
                length = plural(chain.writable_length, "byte")
                self._once.warning(f"the driver gives a buffer to receive into with room for {length}")
                self._queue.complete_together([(chain, 0)])
                continue
            self._stock.append(chain)
            if self._merges or len(self._stock) == 1:
                self._buffers += chain.writable_buffers
                self._bytes += chain.writable_length

    def _finish_waiting(self) -> None:
        """Put the rest of a frame where there is room for it now."""
        size, begun = self._waiting_size, self._spare_from
        self._waiting_size = 0
        copy([self._spare], skip(self._buffers, begun), size - begun)
        self.fill(size)

    def _complete(self, size: int) -> None:
        done = []
        buffers = taken = 0
        for chain in self._stock:
            length = chain.writable_length
            buffers += len(chain.writable_buffers)
            left = size - taken
            taken += length
            if left <= length:
                done.append((chain, left))
                break
            done.append((chain, length))
        if self._header_size > LEGACY_HEADER_SIZE:
            self._write_num_buffers(len(done))
        if not self._knows_flags:
            self._buffers[0][0] = 0
        self._counters.frames += 1
        self._counters.bytes += size - self._header_size
        self._queue.complete_together(done)
        del self._stock[: len(done)]
        if self._merges:
            self._bytes -= taken
            del self._buffers[:buffers]
        elif self._stock:
            self._buffers = list(self._stock[0].writable_buffers)
            self._bytes = self._stock[0].writable_length
        else:
            self._buffers, self._bytes = [], 0

    def _write_num_buffers(self, count: int) -> None:
        number = _NUM_BUFFERS.pack(count)
        first = self._buffers[0]
        if len(first) >= NUM_BUFFERS_OFFSET + _NUM_BUFFERS.size:
            first[NUM_BUFFERS_OFFSET : NUM_BUFFERS_OFFSET + _NUM_BUFFERS.size] = number
        else:
            copy([memoryview(number)], skip(self._buffers, NUM_BUFFERS_OFFSET), len(number))

    def _front(self) -> bytes:
        """Return what the filter looks at, copied once."""
        begin, end = self._header_size, self._header_size + FILTERED_BYTES
        if len(self._buffers[0]) >= end:
            return bytes(self._buffers[0][begin:end])
        return b"".join(skip(self._buffers, begin))[:FILTERED_BYTES]

    def _exceeds_mtu(self, size: int) -> bool:
        """Tell whether a frame of more than `_longest` bytes is one packet, and too long without its tags."""
        (kind,) = skip(self._buffers, GSO_TYPE_OFFSET)[0][:1]
        return not kind & ~GSO_ECN and size - tag_bytes(self._front()) > self._longest

    def _drop(self, too_large_for: str) -> None:
        if not self._counters.dropped:
            _log.warning("a frame is dropped that is too large for %s", too_large_for)
        self._counters.dropped += 1
