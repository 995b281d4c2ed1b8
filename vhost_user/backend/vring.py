"""Vring: one queue of a connection, its description and the task that serves it."""

# How it works: a vring is in one of the states of `vring_states`, which says what may happen in each. The
# front-end describes it in any order; once it is started, enabled and wholly described, a task serves it:
# that makes the ring over the guest's memory, hands a Virtqueue to the device's run_queue(), and waits
# afterwards until it is to stop. Handlers change what the task uses only while there is no task, but for the
# call and err eventfds (`notifier`) and the address of the dirty log.
#
# `stop()` waits until the task has ended: the queue hands out no more chains, the device has `drain_seconds`
# for those that it has, and what it then holds is cancelled. Chains that it has not completed stay in flight
# in the in-flight buffer, or are lost to the driver without one, which is logged. `setup.base` is where the
# ring goes on. If the process dies instead, the base is lost, and the next back-end finds its place from the
# rings and the buffer.

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import SetVringAddr, VringAddressFlag
from protocol.virtio import packed
from protocol.virtio.features import Feature
from protocol.words import plural
from vhost_user.backend.notifier import Notifier
from vhost_user.backend.vring_states import VringEvent, VringState, next_state
from vhost_user.buffers import ChainError
from vhost_user.memory.inflight_file import forget
from vhost_user.memory.regions import BadAddressError, IotlbMissError
from vhost_user.queue import Virtqueue
from vhost_user.ring import BrokenRingError, PackedRing, RingConfig, SplitRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.fds import OwnedFd
    from protocol.io import EventFd
    from protocol.vhost_user import Negotiation
    from vhost_user.backend.dirty_logging import DirtyLogging
    from vhost_user.backend.inflight import InflightNotes
    from vhost_user.backend.iommu import IommuResolver
    from vhost_user.backend.sharing import SharingCheck
    from vhost_user.device import VirtioDevice
    from vhost_user.memory.regions import GuestMemory
    from vhost_user.ring import Ring
    from vhost_user.ring.chain import Chain
    from vhost_user.transport.channel import Channel

PATIENCE_TOLD_SECONDS = 1.0
"""How long a queue may take to stop before the log says that it is waited for."""

_log = logging.getLogger("vhost_user")


@dataclass
class VringSetup:
    """The front-end's description of a ring so far."""

    size: int = 0
    base: int | None = None
    """Where the ring goes on; None until SET_VRING_BASE, for a ring that begins at its start."""
    address: SetVringAddr | None = None
    big_endian: bool = False
    enabled: bool = False

    @property
    def is_complete(self) -> bool:
        """True once all has come that a ring needs beside its start; it may come in any order."""
        return self.size > 0 and self.address is not None


@dataclass(frozen=True)
class VringContext:
    """What the vrings of one connection share; the connection's state makes it, and closes what it has."""

    device: VirtioDevice
    memory: GuestMemory
    nursery: trio.Nursery
    """Of the connection: tasks that serve rings run in it."""
    negotiation: Negotiation
    iommu: IommuResolver
    inflight: InflightNotes
    dirty: DirtyLogging
    sharing: SharingCheck
    inband: Callable[[], Channel | None]
    """Returns the channel for notifications, where they go in-band."""
    resumed: Callable[[], None]
    """Is called when a ring was started, which ends the suspended state."""


class _Run:
    """A queue's task, from its start to its end."""

    def __init__(self) -> None:
        self.queue: Virtqueue | None = None
        self.scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.ended = trio.Event()


class Vring:
    """The set-up of one ring, and its task while it runs."""

    def __init__(self, index: int, context: VringContext) -> None:
        self.index = index
        self.setup = VringSetup()
        self.state = VringState.STOPPED
        self.notifier = Notifier(
            index,
            context.memory,
            inband=context.inband,
            iommu=context.iommu,
            dirty=context.dirty,
            sharing=context.sharing,
        )
        self._context = context
        self._run: _Run | None = None
        self._ring: Ring | None = None
        self._base_at_stop: int | None = None
        self._last_base: int | None = None
        self._told_untracked = False

    @property
    def is_started(self) -> bool:
        """True from the ring's start until it is stopped for good, whether it is served or not."""
        return self.state is not VringState.STOPPED

    @property
    def is_running(self) -> bool:
        """True while a task has the ring."""
        return self.state.has_task

    @property
    def base(self) -> int:
        """Where the ring is, or goes on: what GET_VRING_BASE returns."""
        return (self.setup.base or 0) if self._ring is None else self._ring.base

    @property
    def notes_in_flight(self) -> bool:
        """True if chains under way stay recorded when the process dies, in the in-flight buffer."""
        return self._context.inflight.part(self.index, self.setup.size) is not None

    def start(self, kick: OwnedFd | EventFd | None) -> None:
        """Start the ring, with this eventfd for kicks, if any. Stop it before."""
        self.notifier.set_kick(kick)
        self._happened(VringEvent.START)
        self.serve()

    def serve(self) -> None:
        """Serve the ring if it is to be served and is not."""
        if self.is_started:
            self._context.resumed()
        wanted = self.setup.enabled or self._context.device.serves_disabled_queues
        if self.state is VringState.WAITING and wanted and self.setup.is_complete:
            self._happened(VringEvent.SERVE)
            self._run = _Run()
            self._context.nursery.start_soon(self._serve, self._run, name=f"queue {self.index}")

    async def enable(self, enabled: bool) -> None:
        """Enable or disable the ring; it keeps its place meanwhile."""
        if enabled != self.setup.enabled:
            await self.stop()
        self.setup.enabled = enabled
        self.serve()

    async def withdraw(self, drain_seconds: float | None = None) -> None:
        """Stop the ring for good, until it is started again."""
        await self.stop(drain_seconds)
        self._happened(VringEvent.WITHDRAW)

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Stop serving. The device completes what it has first, for which it has `drain_seconds`."""
        self._happened(VringEvent.STOP)
        if (run := self._run) is None:
            return
        run.stopping.set()
        if run.queue is None:
            run.scope.cancel()
        else:
            run.queue.stop()
        patience = self._context.device.drain_seconds if drain_seconds is None else drain_seconds
        with trio.move_on_after(patience):
            if patience > PATIENCE_TOLD_SECONDS:
                await self._until_ended(run, f"until they are done, for at most {patience:g} s")
            await run.ended.wait()
        run.scope.cancel()
        await self._until_ended(run, "which cannot be cancelled, until they are done")

    async def _until_ended(self, run: _Run, how_long: str) -> None:
        """Wait, and log that after a while: the front-end, and perhaps the guest with it, stands still."""
        with trio.move_on_after(PATIENCE_TOLD_SECONDS):
            await run.ended.wait()
        if not run.ended.is_set():
            requests = 0 if run.queue is None else run.queue.unfinished
            _log.warning(
                "queue %d is to stop, and waits for %s under way, %s",
                *(self.index, plural(requests, "request"), how_long),
            )
            await run.ended.wait()
            _log.info("queue %d has stopped", self.index)

    def is_at(self, address: SetVringAddr) -> bool:
        """Tell whether the ring's parts are there already."""
        old = self.setup.address
        return old is not None and (old.descriptor, old.available, old.used) == (
            address.descriptor,
            address.available,
            address.used,
        )

    def set_address(self, address: SetVringAddr) -> None:
        """Record where the ring is, and where writes to it are logged, which may change while it runs."""
        self.setup.address = address
        if self._ring is not None:
            self._ring.log_address = _log_address(address)

    def memory_changed(self) -> None:
        """Let go of guest memory that was taken away."""
        if self._ring is not None:
            self._ring.memory_changed()

    def set_base(self, base: int) -> None:
        """Record where the ring goes on. Elsewhere than it stopped, it is another ring: nothing is in flight.

        The first base with a buffer says nothing of that: the front-end of a back-end that died
        cannot know how far it had come, and a machine's old state may come back with its buffer.
        """
        if self._base_at_stop not in {None, self._whole(base)}:
            self._forget_inflight()
        self._base_at_stop = None
        self.setup.base = base

    def keep_inflight(self) -> None:
        """Keep the contents of the buffer, which the front-end has just given, whatever base comes next."""
        self._base_at_stop = None
        self._told_untracked = False

    def _happened(self, event: VringEvent) -> None:
        self.state = next_state(self.state, event)

    # The task

    async def _serve(self, run: _Run) -> None:
        try:
            with run.scope:
                try:
                    if (await self._serve_ring(run)).broken:
                        self._happened(VringEvent.BREAK)
                except Exception as error:
                    if (fault := _fault_of_driver(error)) is None:
                        raise
                    self.notifier.broke(fault)
                    self._happened(VringEvent.BREAK)
                await run.stopping.wait()
        finally:
            self.setup.base = self.base
            if self._ring is not None:
                self._base_at_stop = self._last_base = self._ring.base
                self._ring.close()
            self._ring = self._run = None
            self._happened(VringEvent.END)
            run.ended.set()

    async def _serve_ring(self, run: _Run) -> Virtqueue:
        """Make the ring, let the device serve it until it is to stop, or broken; return its queue."""
        begins_anew = self._begins_anew()
        ring = self._ring = await self._make_ring()
        queue = run.queue = Virtqueue(
            *(self.index, self.setup.size, self._context.negotiation.features, ring, self.notifier),
            begins_anew=begins_anew and ring.given_base is None,
        )
        publisher = trio.CancelScope()
        self._context.nursery.start_soon(_publish_deferred, queue, publisher)
        device = self._context.device
        if _log.isEnabledFor(logging.DEBUG):
            features = device.feature_names().explain(str(self._context.negotiation.features))
            _log.debug("queue %d starts at %d, with %s", self.index, ring.base, features)
        try:
            await (device.run_queue if self.setup.enabled else device.run_disabled_queue)(queue)
            if not (queue.stopping or queue.broken):
                _log.info("queue %d is served no more: run_queue() has returned", self.index)
            await queue.drained()
        finally:
            publisher.cancel()
            self._report_lost(queue.take_back())
            _log.debug("queue %d stops at %d", self.index, ring.base)
        return queue

    @property
    def _first_base(self) -> int:
        """Where a ring begins that never ran."""
        return packed.START if Feature.RING_PACKED in self._context.negotiation.features else 0

    @property
    def _given_base(self) -> int:
        """Where the front-end lets the ring go on."""
        return self._first_base if self.setup.base is None else self._whole(self.setup.base)

    def _whole(self, base: int) -> int:
        return packed.whole_base(base) if Feature.RING_PACKED in self._context.negotiation.features else base

    def _begins_anew(self) -> bool:
        """Tell whether the ring is another one than the one that stopped, here or in another back-end."""
        base = self._given_base
        return base == self._first_base if self._last_base is None else base != self._last_base

    async def _make_ring(self) -> Ring:
        """Return the ring, once all its parts are known. Raises BrokenRingError, BadAddressError."""
        setup, features, address = self.setup, self._context.negotiation.features, self.setup.address
        assert address is not None
        kind = PackedRing if Feature.RING_PACKED in features else SplitRing
        config = RingConfig(
            *(setup.size, address.descriptor, address.available, address.used, features, setup.big_endian),
            only_read=self._context.device.only_reads(self.index),
        )
        inflight = self._inflight_part()
        base = self._given_base
        doubted = base == self._first_base and self._last_base is None
        ring: Ring | None = None
        while ring is None:
            try:
                ring = kind(self._context.memory, config, base, inflight, doubted=doubted)
            except IotlbMissError as miss:
                await self._context.iommu.resolve(miss)
        ring.log_address = _log_address(address)
        if ring.given_base is not None:
            _log.warning(
                "queue %d: the front-end has it go on at %#x, which cannot be; it goes on at %#x, behind what"
                " was given back last: what a back-end before had under way may be done twice, or is lost",
                *(self.index, ring.given_base, ring.base),
            )
        if inflight is not None:
            self.notifier.call()  # for a process before us that died between giving chains back and saying so
        return ring

    def _inflight_part(self) -> memoryview | None:
        """Return the part of the in-flight buffer for the ring that starts; log once that there is none."""
        part = self._context.inflight.part(self.index, self.setup.size)
        if part is None:
            self._forget_inflight()  # what the part may tell of a smaller ring is over
            if not self._told_untracked:
                self._told_untracked = True
                self._context.inflight.log_untracked(self.index, self.setup.size)
        return part

    def _forget_inflight(self) -> None:
        """Record that nothing is in flight, in a part that may be too small."""
        if (part := self._context.inflight.part(self.index, 0)) is not None:
            forget(part)

    def _report_lost(self, chains: list[Chain]) -> None:
        if not chains:
            return
        _log.warning(
            "queue %d stops with %s that the device has not completed: %s; they %s",
            self.index,
            plural(len(chains), "chain"),
            ", ".join(str(chain.head) for chain in chains),
            "stay in flight, for the next start" if self.notes_in_flight else "are lost to the driver",
        )


def _fault_of_driver(error: Exception) -> str | None:
    """Return the driver's fault in one line; None if `error` has other causes, too."""
    _, rest = ExceptionGroup("", [error]).split((BrokenRingError, BadAddressError, ChainError))
    if rest is not None:
        return None
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return str(error)


async def _publish_deferred(queue: Virtqueue, scope: trio.CancelScope) -> None:
    with scope:
        await queue.publish_deferred()


def _log_address(address: SetVringAddr) -> int | None:
    return address.log if VringAddressFlag.LOG in address.flags else None
