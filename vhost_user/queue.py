"""Virtqueue: what a device's task iterates over, between a ring in memory and the events around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio
from trio.lowlevel import current_task

from vhost_user.memory.regions import BadAddressError, IotlbMissError
from vhost_user.requests import Requests
from vhost_user.ring import BrokenRingError
from vhost_user.ring.chain import Chain, sizeof

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from types import TracebackType

    from protocol.io import EventFd
    from protocol.virtio.features import Feature
    from vhost_user.ring import Element, Ring
    from vhost_user.ring.chain import Layout

BATCH = 64
"""How many chains one look at the ring takes at most, where the device does not say."""

POLL_SECONDS = 0.001
"""How often to look at the ring of a driver that gave no kick descriptor (SET_VRING_KICK, bit 8)."""

_TURNS_WITHOUT_CHECKPOINT = 16
_KICKS_OF_A_DRIVER = 2
"""QEMU itself kicks once when it starts a ring; a second kick is the driver's."""


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
        """Have the front-end say what is at the address. Raises BadAddressError where nothing is."""


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
        """Use `ring`, which nobody else must use meanwhile. The owner runs `publish_deferred()` beside."""
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
        # Taken from the ring and not handed to the device, the next one last.
        self._ready: list[Chain] = []
        self._taken = 0
        self._asked_for_kicks = True
        # Handed to the device and not completed.
        self._open: set[Chain] = set()
        # Completed and not published. The iterating task's own may wait while it holds a batch.
        self._done: list[tuple[Element, int]] = []
        self._holding = False
        self._late = trio.lowlevel.ParkingLot()
        self._is_late = False
        self._missed: IotlbMissError | None = None
        self._kicks = 0
        self._turns = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._scopes: set[trio.CancelScope] = set()

    @property
    def outstanding(self) -> int:
        """How many chains the device has and has not completed."""
        return len(self._open)

    @property
    def stopping(self) -> bool:
        """True once the queue is to stop: no more chains come."""
        return self._stopping

    def __aiter__(self) -> AsyncIterator[Chain]:
        return self

    async def __anext__(self) -> Chain:
        """Wait for the next chain. A driver that is quick is served many chains without a checkpoint."""
        if not self._ready:
            self._ready = (await self._take(BATCH))[::-1]
        if self._stopping:
            raise StopAsyncIteration
        self._holding = False
        chain = self._ready.pop()
        self._open.add(chain)
        return chain

    def batches(self, limit: int = BATCH) -> AsyncIterator[list[Chain]]:
        """Iterate over lists of 1 to `limit` chains, as many as are there.

        What the iterating task completes is published when it asks for the next batch, or by
        `flush()`: one notification a batch. What other tasks complete is published at once.
        """
        return _Batches(self, limit)

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

    async def next_batch(self, limit: int) -> list[Chain]:
        """Wait for 1 to `limit` chains, as `batches()` does; an empty list is the end."""
        if self._ready:
            batch, self._ready = self._ready[: -limit - 1 : -1], self._ready[:-limit]
        else:
            batch = await self._take(limit)
        if self._stopping:
            self._ready += batch[::-1]
            return []
        self._hand_out(batch)
        return batch

    def take_now(self, limit: int = BATCH) -> list[Chain]:
        """Return at most `limit` chains that are there, without waiting; the driver is not asked to kick.

        For a device that wants chains in stock, as for receiving; it completes them together. Not to
        be called while `available()` is awaited, for which a driver has to kick.
        """
        if self._stopping:
            return []
        if self._ready:
            batch, self._ready = self._ready[: -limit - 1 : -1], self._ready[:-limit]
        else:
            try:
                batch = self._row(self._pop(limit))
            except IotlbMissError:
                return []  # available() has the front-end say what is there
            except BrokenRingError as error:
                self._break(error)
                return []
        self._hand_out(batch)
        return batch

    async def available(self) -> bool:
        """Wait until `take_now()` has chains; False: the queue is to stop, and it will have none.

        One task may wait.
        """
        if not self._ready:
            self._ready = (await self._take(BATCH))[::-1]
        return not self._stopping

    def complete_together(self, done: Sequence[tuple[Chain, int]]) -> None:
        """Complete chains, each with the bytes written to it; `flush()` shows all of them at once.

        In this order, and from any task. Unlike with `Chain.complete()`, the caller sees to it that
        none was completed before, and that the bytes fit.
        """
        if self._finished:
            return
        finished = self._done
        for chain, written in done:
            chain.completed = True
            finished.append((chain.element, written))
        self._open.difference_update([chain for chain, _ in done])

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
        for element, _ in done:  # whoever still refers to one must not keep memory that is taken away
            element.readable.clear()
            element.writable.clear()
        if self._stopping:
            self.recheck()
        self._owner.published(wants_call)

    def until_stop(self) -> _UntilStop:
        """Cancel the block when the queue is to stop; for waiting with a chain in hand.

        ::

            with queue.until_stop() as scope:
                await something_that_may_never_come()
            if scope.cancelled_caught:
                chain.put_back()
        """
        return _UntilStop(self._scopes, self._stopping)

    # For the owner

    @property
    def unfinished(self) -> int:
        """How many chains the device has yet to complete before the queue can stop."""
        return sum(not chain.is_put_back for chain in self._open)

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

    def finish(self) -> list[Chain]:
        """Take the queue from the device, and the newest of its chains back into the ring.

        Returns the chains that the device has, has not completed, and that cannot go back. No chain
        refers to the guest's memory any more, not even one that the device keeps.
        """
        self.flush()
        self._finished = True
        lost = sorted(self._open, key=lambda chain: chain.number)
        back = self._ready
        if not self.broken:
            while lost and lost[-1].number == self._taken - len(back) - 1:
                back.append(lost.pop())
            if back:
                self._ring.rewind([chain.element for chain in reversed(back)])
        for element in [*(chain.element for chain in (*lost, *back)), *(done for done, _ in self._done)]:
            element.readable.clear()
            element.writable.clear()
        self._open, self._ready, self._done = set(), [], []
        return lost

    # For chains

    def give_back(self, chain: Chain, written: int) -> None:
        """Publish a completed chain, now or with others."""
        if self._finished:
            return
        self._open.discard(chain)
        self._done.append((chain.element, written))
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
        return not self._done and all(chain.is_put_back for chain in self._open)

    def _publish_soon(self) -> None:
        self._is_late = True
        self._late.unpark()

    async def _take(self, limit: int) -> list[Chain]:
        """Return the next chains of the ring, at least one, in their order; none at the end."""
        self._task = current_task()
        self._holding = False
        self.flush()
        self._turns += 1
        if self._turns > _TURNS_WITHOUT_CHECKPOINT:
            await self._checkpoint()
        while not self._stopping:
            try:
                if elements := self._pop(limit):
                    return self._row(elements)
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

    def _row(self, elements: list[Element]) -> list[Chain]:
        chains = Chain.row(self, elements, self._taken)
        self._taken += len(chains)
        return chains

    def _hand_out(self, batch: list[Chain]) -> None:
        """Note that the device has these chains, and that what it completes of them may wait."""
        self._holding = True
        self._open.update(batch)

    def _pop(self, limit: int) -> list[Element]:
        elements = self._ring.pop(limit)
        if elements:
            if self._asked_for_kicks:
                self._asked_for_kicks = self._ring.want_kicks(False)
        elif self._kicks >= _KICKS_OF_A_DRIVER and not self._taken:
            self._kicks = 0
            if self._ring.all_zero():
                self._owner.memory_not_shared()
        return elements

    async def _until_kicked(self) -> None:
        kick = self._owner.kick
        self._asked_for_kicks = True
        self._turns = 0
        if kick is None:
            await trio.sleep(POLL_SECONDS)
            return
        try:
            await trio.lowlevel.wait_readable(kick.fileno())
            self._kicks += kick.take()
        except trio.ClosedResourceError:
            pass  # by stop(), which says so
        except OSError as error:
            raise BrokenRingError(f"its kick descriptor is no eventfd: {error.strerror}") from None

    async def _checkpoint(self) -> None:
        self._turns = 0
        await trio.lowlevel.checkpoint()

    async def _resolve(self, miss: IotlbMissError) -> bool:
        """Have an address told that is not known; False where there is nothing, which breaks the queue."""
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


class _UntilStop:
    """What `Virtqueue.until_stop()` returns: a cancel scope that its queue knows while it is entered."""

    def __init__(self, scopes: set[trio.CancelScope], stopping: bool) -> None:
        self._scopes = scopes
        self._scope = trio.CancelScope()
        if stopping:
            self._scope.cancel()

    def __enter__(self) -> trio.CancelScope:
        self._scopes.add(self._scope)
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._scopes.discard(self._scope)
        return bool(self._scope.__exit__(kind, error, trace))


class _Batches:
    """What `Virtqueue.batches()` returns."""

    def __init__(self, queue: Virtqueue, limit: int) -> None:
        self._queue = queue
        self._limit = limit

    def __aiter__(self) -> AsyncIterator[list[Chain]]:
        return self

    async def __anext__(self) -> list[Chain]:
        batch = await self._queue.next_batch(self._limit)
        if not batch:
            raise StopAsyncIteration
        return batch
