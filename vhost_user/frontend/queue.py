"""DriverQueue: a virtqueue from the driver's side: requests, kicks and calls."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import trio

from protocol.io import EventFd
from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from vhost_user.frontend.connection import BackendError, patience
from vhost_user.frontend.driver_ring import Buffer, PackedDriver, RingFullError, SplitDriver, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhost_user.frontend.driver_ring import DriverRing, Used
    from vhost_user.frontend.memory import Block, Memory

POLL_SECONDS = 0.001
"""How often to look at the used ring where the back-end was given no way to call."""

DESCRIPTOR_SIZE = split.DESCRIPTOR_SIZE

Part: TypeAlias = bytes | bytearray | memoryview | int
"""Of a request: bytes that the device reads, or how many bytes it may write."""


class Request:
    """A chain that was submitted. `written` is None until the device has given it back."""

    def __init__(self, memory: Memory) -> None:
        self.written: int | None = None
        """How many bytes the device says it wrote."""
        self.room = b""
        """All that is in the buffers for the device, whether it says that it wrote it or not."""
        self._memory = memory
        self._blocks: list[Block] = []
        self._writable: list[Block] = []

    def add(self, part: Part) -> Buffer:
        """Allocate the next buffer, and fill it. Raises OutOfMemoryError."""
        block = self.take(part if isinstance(part, int) else len(part))
        if isinstance(part, int):
            self._writable.append(block)
        else:
            block.view[:] = part
        return Buffer(block.address, len(block))

    def take(self, size: int) -> Block:
        """Allocate memory until the chain is given back. Raises OutOfMemoryError."""
        block = self._memory.allocate(size)
        self._blocks.append(block)
        return block

    @property
    def is_done(self) -> bool:
        """True once the device has given the chain back."""
        return self.written is not None

    @property
    def data(self) -> bytes:
        """What the device says it wrote."""
        return self.room[: self.written or 0]

    def finish(self, written: int) -> None:
        """Take what the device wrote out of guest memory, and give that back."""
        self.room = b"".join(block.view for block in self._writable)
        self.written = written
        self.release()

    def release(self) -> None:
        """Give its memory back."""
        while self._blocks:
            self._memory.free(self._blocks.pop())
        self._writable.clear()


class Parts:
    """Where the three parts of a ring are: descriptors; what the driver writes; what the device writes."""

    def __init__(self, memory: Memory, size: int, features: Feature) -> None:
        """Allocate them. Raises OutOfMemoryError."""
        if Feature.RING_PACKED in features:
            sizes = [
                (packed.DESCRIPTOR_SIZE * size, packed.DESCRIPTOR_ALIGN),
                (packed.EVENT_SIZE, packed.EVENT_ALIGN),
                (packed.EVENT_SIZE, packed.EVENT_ALIGN),
            ]
        else:
            sizes = [
                (split.table_bytes(size), split.DESCRIPTOR_ALIGN),
                (split.avail_bytes(size, event_index=True), split.AVAIL_ALIGN),
                (split.used_bytes(size, event_index=True), split.USED_ALIGN),
            ]
        self.blocks = [memory.allocate(count, align) for count, align in sizes]
        self.descriptors, self.driver, self.device = self.blocks

    def ring(self, size: int, features: Feature, *, big_endian: bool) -> DriverRing:
        """Return an empty ring there."""
        views = [block.view for block in self.blocks]
        if Feature.RING_PACKED in features:
            return PackedDriver(size, features, *views)
        return SplitDriver(size, features, *views, big_endian=big_endian)


class DriverQueue:
    """One virtqueue of a `Frontend`, which makes it with `start_queue()`.

    `request()` is one request from its beginning to its end; `submit()`, `wait()` and `used()` are its
    parts. Any task may call any of them at any time. For chains as strange as they may be, use `ring`
    and `publish()`.
    """

    def __init__(
        self,
        index: int,
        size: int,
        features: Feature,
        memory: Memory,
        *,
        notify: Callable[[], None] | None,
        has_calls: bool,
        polls: bool,
        big_endian: bool,
        patience: float,
    ) -> None:
        """`notify()` kicks where there is no eventfd for it. With `polls` there are no calls.

        Raises OutOfMemoryError.
        """
        self.index = index
        self.size = size
        self.features = features
        self.parts = Parts(memory, size, features)
        """Where the ring is, in guest memory."""
        self.ring = self.parts.ring(size, features, big_endian=big_endian)
        """The ring, for chains that `submit()` does not make. Let the device see them with `publish()`."""
        self.base = self.ring.base
        """Where the back-end goes on when the queue is started: what GET_VRING_BASE returned."""
        self.big_endian = big_endian
        self.has_kicks = notify is None
        """False: the back-end gets no eventfd to wait for."""
        self.has_calls = has_calls
        """False: the back-end gets no eventfd to signal."""
        self.kick = EventFd.create()
        """By which the back-end is notified."""
        self.call = EventFd.create()
        """What the back-end signals when it has used something."""
        self.err = EventFd.create()
        """What the back-end signals when the ring is broken."""
        self.failure: BackendError | None = None
        """Why the queue is of no further use, if so."""
        self.kicks = 0
        """How often the back-end was notified."""
        self._memory = memory
        self._notify = notify or self.kick.signal
        self._polls = polls
        self._patience = patience
        self._taken = 0
        self._raw: deque[Used] = deque()
        self._pending: set[Request] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self._waiting: trio.CancelScope | None = None

    async def request(self, *parts: Part, indirect: bool | None = None) -> bytes:
        """Submit a chain, and wait for it; return what the device says it wrote.

        `parts` are the buffers in their order: bytes that the device reads, then numbers of bytes that
        it may write. Waits while the ring is full. `indirect` is as for `submit()`. Raises
        BackendError where the device does not give it back in time, or breaks the ring.
        """
        with patience(self._patience, f"give back a chain of queue {self.index}"):
            while (request := self._try_to_submit(parts, indirect)) is None:
                await self._collect()
            await self._until(request)
        return request.data

    def submit(self, *parts: Part, indirect: bool | None = None, publish: bool = True) -> Request:
        """Make a chain available, as for `request()`, and notify the back-end if it wants that.

        With `indirect` it is one descriptor of the ring, and a table elsewhere; by default it is where
        INDIRECT_DESC was negotiated and it has more than one buffer. Without `publish` the back-end
        sees it later, with the next one or with `publish()`. Raises RingFullError, OutOfMemoryError, and
        BackendError where the queue is of no further use.
        """
        if self.failure is not None:
            raise self.failure
        if indirect is None:
            indirect = len(parts) > 1 and Feature.INDIRECT_DESC in self.features
        request = Request(self._memory)
        try:
            readable = [request.add(part) for part in parts if not isinstance(part, int)]
            writable = [request.add(part) for part in parts if isinstance(part, int)]
            table = request.take(DESCRIPTOR_SIZE * len(parts)) if indirect else None
            self.ring.add(
                readable, writable, request, table=Table(table.address, table.view) if table else None
            )
        except BaseException:
            request.release()
            raise
        self._pending.add(request)
        if publish:
            self.publish()
        return request

    def publish(self, *, kick: bool | None = None) -> None:
        """Let the back-end see what was added, and notify it if it wants that, or as `kick` says."""
        wanted = self.ring.publish()
        if wanted if kick is None else kick:
            self.kicks += 1
            self._notify()

    async def wait(self, request: Request) -> bytes:
        """Wait until the device has given a chain back; return what it says it wrote.

        Raises BackendError as `request()` does.
        """
        with patience(self._patience, f"give back a chain of queue {self.index}"):
            await self._until(request)
        return request.data

    async def used(self) -> list[Used]:
        """Wait for chains that were added to `ring` directly, and were used; return them in their order.

        Raises BackendError as `request()` does.
        """
        with patience(self._patience, f"give back a chain of queue {self.index}"):
            while not self._raw:
                await self._collect()
        found = list(self._raw)
        self._raw.clear()
        return found

    @property
    def outstanding(self) -> int:
        """How many chains the device has."""
        return len(self.ring.pending)

    def rewind(self) -> None:
        """Let a back-end that knows nothing of the ring go on with the first chain that was not used."""
        self.failure = None
        self._take()
        self.base = self.ring.base
        self.call.signal()  # a task may wait for what was just taken

    async def watch_errors(self) -> None:
        """Wait until the back-end reports that the ring is broken."""
        with contextlib.suppress(trio.ClosedResourceError):
            while await self.err.wait():
                self.fail(
                    BackendError(f"the back-end says that queue {self.index} is broken; its log says why")
                )

    def fail(self, error: BackendError) -> None:
        """Raise `error` in all tasks that wait for the queue, now and later."""
        self.failure = error
        if self._waiting is not None:
            self._waiting.cancel()

    def close(self) -> None:
        """Give all memory back; the queue is of no further use."""
        self.fail(self.failure or BackendError(f"queue {self.index} was closed"))
        for request in self._pending:
            request.release()
        for block in self.parts.blocks:
            self._memory.free(block)
        del (
            self.ring,
            self.parts,
        )  # views of memory, which would stay mapped as long as this object lives
        for eventfd in (self.kick, self.call, self.err):
            eventfd.close()

    def _try_to_submit(self, parts: Sequence[Part], indirect: bool | None) -> Request | None:
        try:
            return self.submit(*parts, indirect=indirect)
        except RingFullError:
            if not self.outstanding:
                raise  # it never fits
            return None

    async def _until(self, request: Request) -> None:
        while not request.is_done:
            await self._collect()

    async def _collect(self) -> None:
        """Wait until something was used, and take it. Of several tasks one does so for all."""
        if self._waiting is not None:
            await self._changed.park()
            return
        try:
            before = self._taken
            with trio.CancelScope() as self._waiting:
                while self._taken == before and not self._take():
                    await self._called()
                await trio.lowlevel.checkpoint()
        finally:
            self._waiting = None
            self._changed.unpark_all()
        if self.failure is not None:
            raise self.failure

    async def _called(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.ring.want_calls(True):
            return  # something was used just now
        if self._polls:
            await trio.sleep(POLL_SECONDS)
        else:
            await self.call.wait()

    def _take(self) -> bool:
        """Take used chains; return whether there were any. Raises BackendError for impossible ones."""
        try:
            found = self.ring.used()
        except RuntimeError as error:
            self.failure = BackendError(f"queue {self.index}: {error}")
            raise self.failure from None
        for used in found:
            if isinstance(used.token, Request):
                self._pending.discard(used.token)
                used.token.finish(used.written)
            else:
                self._raw.append(used)
        self._taken += len(found)
        return bool(found)
