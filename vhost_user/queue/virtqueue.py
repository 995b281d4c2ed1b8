"""Virtqueue: a device task's view of a ring, and of the events around it."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import trio
from trio.lowlevel import current_task

from vhost_user.buffers import sizeof
from vhost_user.memory import BadAddressError, IotlbMissError
from vhost_user.queue.iteration import Batches, UntilStop
from vhost_user.queue.requests import Requests
from vhost_user.ring import BrokenRingError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from protocol.io import EventFd
    from protocol.virtio.features import Feature
    from vhost_user.buffers import Layout
    from vhost_user.ring import Batch, Chain, Ring

BATCH = 64
"""How many chains one look at the ring takes at most, where the device does not say."""

POLL_SECONDS = 0.001
"""How often to look at the ring of a driver that gave no kick descriptor (SET_VRING_KICK, bit 8)."""

TURN_SECONDS = 0.005
"""How long a queue's task may go on without a checkpoint, where its driver is quicker than the device."""

_KICKS_OF_A_DRIVER = 2
"""QEMU itself kicks once when it starts a ring; a second kick is the driver's."""


# How it works. One thread, three kinds of tasks: one iterates, any may complete, and the owner stops.
#
# A chain is popped (in the ring's record), ready (popped, not delivered), with the device, completed (in
# `_done`), published (out of the record, without buffers); or put back, which only a stop looks at.
# The queue runs, is stopping (after stop(): nothing is delivered, what is with the device is awaited), and is
# finished (after take_back(): completions have no effect). `broken` is set once, at any time before, and
# stops it: a broken ring is never touched again.
#
# Completions of the iterating task wait in `_done` while it holds a batch, and are published when it asks
# for the next one; those of other tasks are published at once. Where publication misses an IOTLB entry,
# publish_deferred() asks for it, in the owner's task, and tries again.
#
# Order that must not change: `_done` is published before the queue sleeps, and the driver is asked for kicks
# before the last look at the ring; otherwise both sides could wait for each other.
#
# Fairness: the turn ends by the clock, which is read once a batch, or once a chain that is delivered singly.
#
# take_back() rewinds what is newest and not published; older chains are lost to the driver unless the
# in-flight buffer keeps them. A crash loses the queue as a whole; the ring and that buffer remain.


class QueueOwner(Protocol):
    """What a queue needs around it."""

    @property
    def kick(self) -> EventFd | None:
        """By which the driver tells that chains are available; None: look every POLL_SECONDS."""

    def published(self, wants_call: bool) -> None:
        """Tell the driver that chains were given back, if it wants a call."""

    def broke(self, reason: str) -> None:
        """Report that the driver broke the ring, and how."""

    def memory_not_shared(self) -> None:
        """Report that the driver kicked, but its ring has never held anything but zeros."""

    async def resolve(self, miss: IotlbMissError) -> None:
        """Ask the front-end what is at the address. Raises BadAddressError where nothing is."""


class Virtqueue:
    """One running virtqueue, from its start to its stop; `VirtioDevice.run_queue()` gets it.

    ::

        async for chain in queue:
            chain.writable.write(b"hello")
            chain.complete()

    The iteration ends when the front-end stops the queue, or when the driver has broken it. The
    driver is told of completed chains at once, and only once for those of a batch. A device that
    wants speed takes whole batches with `batches()`. One task iterates; any task may complete.
    """

    def __init__(
        self,
        index: int,
        size: int,
        features: Feature,
        ring: Ring,
        owner: QueueOwner,
        *,
        begins_anew: bool = True,
    ) -> None:
        """Use `ring`, which must have no other user meanwhile. `owner` runs `publish_deferred()` beside."""
        self.index = index
        """The queue's number, from 0."""
        self.size = size
        """Entries of its ring."""
        self.features = features
        """The features that were negotiated."""
        self.begins_anew = begins_anew
        """False where it goes on from where it stopped, here or elsewhere: paused, or migrated.

        True is the only word that a device has of a guest that rebooted: of most devices, QEMU tells no
        back-end that the driver has reset them.
        """
        self.broken = ""
        """What the driver did wrong, once it did, in one line: the queue is of no further use then."""
        self._ring = ring
        self._owner = owner
        self._task: trio.lowlevel.Task | None = None
        self._stopping = False
        self._finished = False
        ring.completions = self
        self._ready: list[Chain] = []
        """Popped from the ring and not delivered to the device, the next one last."""
        self._asked_for_kicks = True
        self._done: list[Chain] = []
        """Completed and not published. The iterating task's own may wait while it holds a batch."""
        self._holding = False
        self._late = trio.lowlevel.ParkingLot()
        self._is_late = False
        self._missed: IotlbMissError | None = None
        self._kicks = 0
        self._turn_ends = monotonic() + TURN_SECONDS
        self._changed = trio.lowlevel.ParkingLot()
        self._scopes: set[trio.CancelScope] = set()

    @property
    def outstanding(self) -> int:
        """How many chains the device has and has not completed."""
        return len(self._with_device())

    @property
    def stopping(self) -> bool:
        """True once the queue is to stop: no more chains come."""
        return self._stopping

    def __aiter__(self) -> AsyncIterator[Chain]:
        return self

    async def __anext__(self) -> Chain:
        """Wait for the next chain. A driver that is quick is served many chains without a checkpoint."""
        if not self._ready:
            self._ready = [*reversed(await self._take(BATCH))]
        elif monotonic() >= self._turn_ends:
            await self._checkpoint()
        if self._stopping:
            raise StopAsyncIteration
        self._holding = False
        return self._ready.pop()

    def batches(self, limit: int = BATCH) -> AsyncIterator[Batch]:
        """Iterate over batches of 1 to `limit` chains, as many as are there.

        What the iterating task completes is published when it asks for the next batch, or by
        `flush()`: one notification a batch. What other tasks complete is published at once.
        """
        return Batches(partial(self.next_batch, limit))

    def requests(
        self, header: Layout, *, room: int = 0, refusal: bytes | Callable[[Chain], bytes] = b""
    ) -> Requests:
        r"""Iterate over chains that begin with `header`, each with what it says, and have `room` to answer.

        ::

            HEADER = struct.Struct("<IIQ")
            async for chain, (kind, _, sector) in queue.requests(HEADER, room=1, refusal=b"\x01"):
                ...

        A chain that is shorter, or has fewer bytes of room, is completed with `refusal`, as far as there is
        room, and logged once; `refusal` may be called with the chain for that. What follows the header is
        left in `readable`. `header` is a struct.Struct, or a construct of a fixed size, where a value that
        cannot be is refused, too. Raises TypeError for a construct without a size of its own.
        """
        sizeof(header)
        return Requests(self, header, room, refusal)

    async def next_batch(self, limit: int) -> Batch:
        """Wait for 1 to `limit` chains, as `batches()` does; an empty batch is the end."""
        if self._ready:
            batch: Batch = self._next_ready(limit)
        else:
            batch = await self._take(limit)
        if self._stopping:
            self._ready += reversed(batch)
            return []
        self._holding = True
        return batch

    def take_now(self, limit: int = BATCH) -> Batch:
        """Return at most `limit` chains that are there, without waiting; the driver is not asked to kick.

        For a device that wants chains in stock, as for receiving; it completes them together. Not to
        be called while `available()` is awaited, for which a driver has to kick.
        """
        if self._stopping:
            return []
        if self._ready:
            batch: Batch = self._next_ready(limit)
        else:
            try:
                batch = self._pop(limit)
            except IotlbMissError:
                return []  # available() asks the front-end for the address
            except BrokenRingError as error:
                self._break(error)
                return []
        self._holding = True
        return batch

    async def available(self) -> bool:
        """Wait until `take_now()` has chains; False: the queue is to stop, and it will have none.

        One task may wait.
        """
        if not self._ready:
            self._ready = [*reversed(await self._take(BATCH))]
        return not self._stopping

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        """Complete chains, each with the bytes written to it; `flush()` shows all of them at once.

        In this order, and from any task. Unlike with `Chain.complete()`, the caller sees to it that
        none was completed before, and that the bytes fit.
        """
        if self._finished:
            return
        waiting = self._done
        for chain, written in done:
            chain.written = written
            waiting.append(chain)

    def flush(self) -> None:
        """Publish completed chains now: the driver sees them, and is called if it wants to be."""
        done = self._done
        if not done or self._finished or self.broken:
            return
        try:
            wants_call = self._ring.push(done)
        except IotlbMissError as miss:
            self._missed = miss
            self._publish_soon()
            return
        except BrokenRingError as error:
            self._break(error)
            return
        self._done = []
        if self._stopping:
            self.recheck()
        self._owner.published(wants_call)

    def until_stop(self) -> UntilStop:
        """Cancel the block when the queue is to stop; for waiting with a chain in hand.

        ::

            with queue.until_stop() as scope:
                await something_that_may_never_come()
            if scope.cancelled_caught:
                chain.put_back()
        """
        return UntilStop(self._scopes, self._stopping)

    # For the owner

    @property
    def unfinished(self) -> int:
        """How many chains the device has yet to complete before the queue can stop."""
        return sum(not chain.is_put_back for chain in self._with_device())

    def stop(self) -> None:
        """End the iteration after the chains in hand."""
        if self._stopping:
            return
        self._stopping = True
        if (kick := self._owner.kick) is not None:
            trio.lowlevel.notify_closing(kick.fileno())  # wakes the task that waits for it
        for scope in list(self._scopes):
            scope.cancel()
        self.recheck()

    async def drained(self) -> None:
        """Wait until the queue is to stop, and the device has no chain left to complete."""
        while not (self._stopping and self._is_idle()):
            await self._changed.park()

    async def publish_deferred(self) -> None:
        """Publish what could not be published at once; runs beside the device until cancelled."""
        while True:
            while not self._is_late:
                await self._late.park()
            self._is_late = False
            miss, self._missed = self._missed, None
            if miss is None or await self._resolve(miss):
                self.flush()

    def take_back(self) -> list[Chain]:
        """Take the queue from the device, and the newest of its chains back into the ring.

        Those are all that were taken after the last one that the driver was given back. Completed ones may
        be among them that could not be given back (IN_ORDER, behind one that is not completed): whoever
        serves the queue next does them again. Returns the others, which are lost to the driver. No chain
        refers to the guest's memory any more, not even one that the device keeps.
        """
        self.flush()
        self._finished = True
        lost = self._with_device() if self.broken else self._rewind()
        for chain in self._ring.uncompleted():
            chain.drop_buffers()
        self._ready, self._done = [], []
        return lost

    # For chains

    def completed(self, chain: Chain) -> None:
        """Publish a completed chain, now or with others."""
        if self._finished:
            return
        self._done.append(chain)
        if not (self._holding or self._ready) or current_task() is not self._task:
            self.flush()
        elif not self._holding:
            self._publish_soon()

    def recheck(self) -> None:
        """Wake whoever waits for a state of the queue."""
        self._changed.unpark_all()

    def _is_idle(self) -> bool:
        if self.broken or self._finished:
            return True
        return not self._done and all(chain.is_put_back for chain in self._with_device())

    def _publish_soon(self) -> None:
        self._is_late = True
        self._late.unpark()

    def _rewind(self) -> list[Chain]:
        """Put the newest chains back into the ring; return the others that were not given back."""
        taken = self._ring.uncompleted()
        kept = len(taken)
        while kept and self._ring.popped - taken[kept - 1].number == len(taken) - kept + 1:
            kept -= 1
        if kept < len(taken):
            self._ring.rewind(taken[kept:])
        return taken[:kept]

    def _with_device(self) -> list[Chain]:
        """Return the chains that the device has and has not completed, oldest first."""
        taken = self._ring.uncompleted()  # those that are ready are the newest
        return [chain for chain in taken[: len(taken) - len(self._ready)] if not chain.completed]

    def _next_ready(self, limit: int) -> list[Chain]:
        batch, self._ready = self._ready[: -limit - 1 : -1], self._ready[:-limit]
        return batch

    async def _take(self, limit: int) -> Batch:
        """Return the next chains of the ring, at least one, in their order; none at the end."""
        self._task = current_task()
        self._holding = False
        self.flush()
        if monotonic() >= self._turn_ends:
            await self._checkpoint()
        while not self._stopping:
            try:
                if batch := self._pop(limit):
                    return batch
                if self._ring.want_kicks(True):
                    await self._checkpoint()
                else:
                    await self._until_kicked()
            except IotlbMissError as miss:
                # A front-end that stops the queue waits for us, and answers nothing meanwhile.
                with self.until_stop():
                    await self._resolve(miss)
            except BrokenRingError as error:
                self._break(error)
        return []

    def _pop(self, limit: int) -> Batch:
        batch = self._ring.pop(limit)
        if batch:
            if self._asked_for_kicks:
                self._asked_for_kicks = self._ring.want_kicks(False)
        elif self._kicks >= _KICKS_OF_A_DRIVER and not self._ring.popped:
            self._kicks = 0
            if self._ring.all_zero():
                self._owner.memory_not_shared()
        return batch

    async def _until_kicked(self) -> None:
        kick = self._owner.kick
        self._asked_for_kicks = True
        try:
            if kick is None:
                await trio.sleep(POLL_SECONDS)
            else:
                await trio.lowlevel.wait_readable(kick.fileno())
                self._kicks += kick.take()
        except trio.ClosedResourceError:
            pass  # by stop(), which says so
        except OSError as error:
            raise BrokenRingError(f"its kick descriptor is not an eventfd: {error.strerror}") from None
        self._turn_ends = monotonic() + TURN_SECONDS

    async def _checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()
        self._turn_ends = monotonic() + TURN_SECONDS

    async def _resolve(self, miss: IotlbMissError) -> bool:
        """Ask for an unknown address; False where nothing is there, which breaks the queue."""
        try:
            await self._owner.resolve(miss)
        except BadAddressError as error:
            self._break(error)
        return not self.broken

    def _break(self, error: Exception) -> None:
        if not self.broken:
            self.broken = str(error)
            self._owner.broke(self.broken)
            self.stop()
