"""Vring: one queue of a connection, from what the front-end says of it to the task that serves it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from protocol.io import EventFd
from protocol.vhost_user import SetVringAddr, VringAddressFlag, VringCall, VringErr
from protocol.virtio import packed
from protocol.virtio.features import Feature
from protocol.words import plural
from vhost_user.buffers import ChainError
from vhost_user.memory.inflight_file import forget
from vhost_user.memory.regions import BadAddressError, IotlbMissError
from vhost_user.queue import Virtqueue
from vhost_user.ring import BrokenRingError, PackedRing, RingConfig, SplitRing

if TYPE_CHECKING:
    from protocol.fds import OwnedFd
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
    """What the front-end has said of a ring so far."""

    size: int = 0
    base: int | None = None
    """None until somebody says: where a ring starts that never ran."""
    address: SetVringAddr | None = None
    big_endian: bool = False
    started: bool = False
    enabled: bool = False
    kick: EventFd | None = None
    call: EventFd | None = None
    err: EventFd | None = None

    @property
    def is_runnable(self) -> bool:
        """True once everything has come that a ring needs; it may come in any order."""
        return self.started and self.size > 0 and self.address is not None

    def replace(self, name: str, fd: OwnedFd | EventFd | None) -> None:
        """Take the eventfd `name` ("kick", "call" or "err"), and close the one before it."""
        old: EventFd | None = getattr(self, name)
        if old is not None:
            old.close()
        setattr(self, name, fd if fd is None or isinstance(fd, EventFd) else EventFd(fd.detach()))

    def close(self) -> None:
        """Close the eventfds."""
        for name in ("kick", "call", "err"):
            self.replace(name, None)


class VringOwner(Protocol):
    """What the rings of one connection share."""

    device: VirtioDevice
    memory: GuestMemory
    nursery: trio.Nursery

    @property
    def features(self) -> Feature:
        """The features that were negotiated."""

    @property
    def inband(self) -> Channel | None:
        """The channel for notifications, where they go in-band."""

    def inflight_part(self, index: int, size: int) -> memoryview | None:
        """Return where queue `index`, with a ring of `size`, notes what is in flight, if it can."""

    def signal_log(self) -> None:
        """Tell that the dirty log has changed, if the front-end wants to know."""

    def untracked(self, index: int, size: int) -> None:
        """Report that queue `index`, with a ring of `size`, has no room in the in-flight buffer, if any."""

    def memory_not_shared(self, index: int) -> None:
        """Report that the ring of queue `index` holds nothing, although the driver kicks."""

    def resumed(self) -> None:
        """Take notice of a ring that was started."""

    async def resolve(self, miss: IotlbMissError) -> None:
        """Have the front-end say what is at the address. Raises BadAddressError where nothing is."""


class _Run:
    """A queue's task, from its start to its end."""

    def __init__(self) -> None:
        self.queue: Virtqueue | None = None
        self.scope = trio.CancelScope()
        self.stopping = trio.Event()
        self.ended = trio.Event()


class Vring:
    """The set-up of one ring, and its task while it runs."""

    def __init__(self, index: int, owner: VringOwner) -> None:
        self.index = index
        self.setup = VringSetup()
        self._owner = owner
        self._has_called = False
        self._run: _Run | None = None
        self._ring: Ring | None = None
        self._base_at_stop: int | None = None
        self._last_base: int | None = None
        self._told_untracked = False

    @property
    def is_running(self) -> bool:
        """True while a task serves the ring."""
        return self._run is not None

    @property
    def base(self) -> int:
        """Where the ring is, or goes on: what GET_VRING_BASE returns."""
        return (self.setup.base or 0) if self._ring is None else self._ring.base

    @property
    def notes_in_flight(self) -> bool:
        """True where what is under way survives us, in the in-flight buffer."""
        return self._owner.inflight_part(self.index, self.setup.size) is not None

    def start(self) -> None:
        """Serve the ring if it is to be served and is not."""
        if self.setup.started:
            self._owner.resumed()
        wanted = self.setup.enabled or self._owner.device.serves_disabled_queues
        if self._run is None and wanted and self.setup.is_runnable:
            self._run = _Run()
            self._owner.nursery.start_soon(self._serve, self._run, name=f"queue {self.index}")

    async def enable(self, enabled: bool) -> None:
        """Enable or disable the ring; it keeps its place meanwhile."""
        if enabled != self.setup.enabled:
            await self.stop()
        self.setup.enabled = enabled
        self.start()

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Stop serving. The device completes what it has first, for which it has `drain_seconds`."""
        if (run := self._run) is None:
            return
        run.stopping.set()
        if run.queue is None:
            run.scope.cancel()
        else:
            run.queue.stop()
        patience = self._owner.device.drain_seconds if drain_seconds is None else drain_seconds
        with trio.move_on_after(patience):
            if patience > PATIENCE_TOLD_SECONDS:
                await self._until_ended(run, f"until they are done, for at most {patience:g} s")
            await run.ended.wait()
        run.scope.cancel()
        await self._until_ended(run, "which cannot be cancelled, until they are done")

    async def _until_ended(self, run: _Run, how_long: str) -> None:
        """Wait, and say so after a while: the front-end, and with it perhaps the guest, stands still."""
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
        """Note where the ring is, and where writes to it are logged, which may change while it runs."""
        self.setup.address = address
        if self._ring is not None:
            self._ring.log_address = _log_address(address)

    def memory_changed(self) -> None:
        """Let go of guest memory that was taken away."""
        if self._ring is not None:
            self._ring.memory_changed()

    def set_base(self, base: int) -> None:
        """Note where the ring goes on. Elsewhere than it stopped, it is another one: nothing is in flight.

        The first base with a buffer says nothing of that: the front-end of a back-end that died
        cannot know how far it had come, and a machine's old state may come back with its buffer.
        """
        if self._base_at_stop not in {None, self._whole(base)}:
            self._forget_inflight()
        self._base_at_stop = None
        self.setup.base = base

    def keep_inflight(self) -> None:
        """Believe the buffer, which the front-end has just given, whatever base comes next."""
        self._base_at_stop = None
        self._told_untracked = False

    def call(self) -> None:
        """Interrupt the driver."""
        self._has_called = True
        self._signal("call", VringCall(self.index))

    def set_call(self, fd: OwnedFd | None) -> None:
        """Call the driver by this eventfd from now on.

        A front-end that masks and unmasks an interrupt changes the eventfd, and looks only once for
        calls on the one before. One that we make just then would be seen by nobody, so we repeat it.
        """
        self.setup.replace("call", fd)
        if self._has_called and self.is_running:
            self.call()
        self._has_called = False

    # The queue's owner

    @property
    def kick(self) -> EventFd | None:
        """The eventfd by which the driver kicks, which may be one of ours for kicks in-band."""
        return self.setup.kick

    def published(self, wants_call: bool) -> None:
        """Call the driver if it wants that, and tell of a dirty log that has changed."""
        if wants_call:
            self.call()
        if self._owner.memory.log is not None:
            self._owner.signal_log()

    def broke(self, reason: str) -> None:
        """Tell log and front-end that the driver broke the ring; the other rings go on."""
        _log.error("queue %d is broken and stopped: %s", self.index, reason)
        self._signal("err", VringErr(self.index))

    def memory_not_shared(self) -> None:
        """Report that the ring holds nothing, although the driver kicks."""
        self._owner.memory_not_shared(self.index)

    async def resolve(self, miss: IotlbMissError) -> None:
        """Have the front-end say what is at an address. Raises BadAddressError where nothing is."""
        await self._owner.resolve(miss)

    def _signal(self, name: str, message: VringCall | VringErr) -> None:
        eventfd: EventFd | None = getattr(self.setup, name)
        if eventfd is None:
            if (channel := self._owner.inband) is not None:
                channel.notify(message, self.index)
            return
        try:
            eventfd.signal()
        except OSError as error:
            _log.error("queue %d: its %s descriptor is not an eventfd: %s", self.index, name, error.strerror)
            self.setup.replace(name, None)

    # The task

    async def _serve(self, run: _Run) -> None:
        try:
            with run.scope:
                try:
                    await self._serve_ring(run)
                except Exception as error:
                    if (fault := _fault_of_driver(error)) is None:
                        raise
                    self.broke(fault)
                await run.stopping.wait()
        finally:
            self.setup.base = self.base
            if self._ring is not None:
                self._base_at_stop = self._last_base = self._ring.base
                self._ring.close()
            self._ring = self._run = None
            run.ended.set()

    async def _serve_ring(self, run: _Run) -> None:
        begins_anew = self._begins_anew()
        ring = self._ring = await self._make_ring()
        queue = run.queue = Virtqueue(
            *(self.index, self.setup.size, self._owner.features, ring, self),
            begins_anew=begins_anew and ring.given_base is None,
        )
        publisher = trio.CancelScope()
        self._owner.nursery.start_soon(_publish_deferred, queue, publisher)
        device = self._owner.device
        if _log.isEnabledFor(logging.DEBUG):
            features = device.feature_names().explain(str(self._owner.features))
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

    @property
    def _first_base(self) -> int:
        """Where a ring begins that never ran."""
        return packed.START if Feature.RING_PACKED in self._owner.features else 0

    @property
    def _given_base(self) -> int:
        """Where the front-end has the ring go on."""
        return self._first_base if self.setup.base is None else self._whole(self.setup.base)

    def _whole(self, base: int) -> int:
        return packed.whole_base(base) if Feature.RING_PACKED in self._owner.features else base

    def _begins_anew(self) -> bool:
        """Tell whether the ring is another one than the one that stopped, here or in another back-end."""
        base = self._given_base
        return base == self._first_base if self._last_base is None else base != self._last_base

    async def _make_ring(self) -> Ring:
        """Return the ring, once all its parts are known. Raises BrokenRingError, BadAddressError."""
        setup, features, address = self.setup, self._owner.features, self.setup.address
        assert address is not None
        kind = PackedRing if Feature.RING_PACKED in features else SplitRing
        config = RingConfig(
            *(setup.size, address.descriptor, address.available, address.used, features, setup.big_endian),
            only_read=self._owner.device.only_reads(self.index),
        )
        inflight = self._inflight_part()
        base = self._given_base
        doubted = base == self._first_base and self._last_base is None
        ring: Ring | None = None
        while ring is None:
            try:
                ring = kind(self._owner.memory, config, base, inflight, doubted=doubted)
            except IotlbMissError as miss:
                await self._owner.resolve(miss)
        ring.log_address = _log_address(address)
        if ring.given_base is not None:
            _log.warning(
                "queue %d: the front-end has it go on at %#x, which cannot be; it goes on at %#x, behind what"
                " was given back last: what a back-end before had under way may be done twice, or is lost",
                *(self.index, ring.given_base, ring.base),
            )
        if inflight is not None:
            self.call()  # for a process before us that died between giving chains back and saying so
        return ring

    def _inflight_part(self) -> memoryview | None:
        """Return where the ring that starts notes what is in flight; say so, once, where it cannot."""
        part = self._owner.inflight_part(self.index, self.setup.size)
        if part is None:
            self._forget_inflight()  # what the part may tell of a smaller ring is over
            if not self._told_untracked:
                self._told_untracked = True
                self._owner.untracked(self.index, self.setup.size)
        return part

    def _forget_inflight(self) -> None:
        """Note that nothing is in flight, in a part that may be too small."""
        if (part := self._owner.inflight_part(self.index, 0)) is not None:
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
    """Return what a driver did wrong, in one line; None where that is not all that `error` says."""
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
