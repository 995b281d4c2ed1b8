"""Frontend: takes the place of QEMU and of the driver in its guest."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, TypeVar

from protocol.fds import OwnedFd
from protocol.io import FdStream
from protocol.vhost_user import (
    ALWAYS_ACCEPTED,
    AddMemReg,
    Config,
    Features,
    GetConfig,
    GetFeatures,
    GetInflightFd,
    GetProtocolFeatures,
    GetQueueNum,
    Inflight,
    Number,
    ProtocolFeature,
    ProtocolFeatures,
    RemMemReg,
    Reply,
    ResetDevice,
    SetBackendReqFd,
    SetConfig,
    SetFeatures,
    SetMemTable,
    SetOwner,
    SetProtocolFeatures,
    SetVringEnable,
    VringKick,
)
from protocol.virtio.features import DeviceStatus, Feature
from vhost_user.frontend import migration, vrings
from vhost_user.frontend.connection import BackendError, BackendGoneError, Connection, reach
from vhost_user.frontend.defaults import NOT_BY_DEFAULT, PROTOCOL_BY_DEFAULT
from vhost_user.frontend.handlers import BackendRequestHandlers
from vhost_user.frontend.iommu import Iommu
from vhost_user.frontend.memory import USER_OFFSET, Memory
from vhost_user.frontend.queue import DriverQueue
from vhost_user.frontend.requests import BackendRequests
from vhost_user.frontend.status import DriverStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.io.background import Task
    from protocol.vhost_user import BackendMessage, FrontendMessage, Negotiation
    from vhost_user.frontend.dirty_pages import DirtyPages
    from vhost_user.frontend.memory import Region
    from vhost_user.frontend.requests import Handler

    _R = TypeVar("_R", bound=Reply)


class Frontend:
    """A front-end with a guest's memory, and a driver with queues in it. `connect()` makes one.

    All methods that ask the back-end for something raise BackendError where it refuses, or does not
    answer in time, and BackendGoneError where it has left.
    """

    def __init__(
        self, start: Callable[[Task], None], path: str | None, patience: float, *, resilient: bool
    ) -> None:
        """`start(function)` starts a task; `close()` closes the rest. `patience` is in seconds."""
        self.memory = Memory()
        """The guest's memory. Add and remove regions with `add_memory()` and `remove_memory()`."""
        self.iommu = Iommu(self.memory)
        """The translations that the device gets with ACCESS_PLATFORM."""
        self.queues: dict[int, DriverQueue] = {}
        """The queues that were started, by their number."""
        self.num_queues = 1
        """How many queues the back-end has; known after `negotiate()`, and 1 without MQ."""
        self._handlers = BackendRequestHandlers(self.queues, self.iommu, self.ask)
        self.handlers: dict[type[BackendMessage], Handler] = self._handlers.table()
        """The handlers of the back-end's own requests; a test may add some."""
        self._start = start
        self._path = path
        self._patience = patience
        self._resilient = resilient
        self._status = DriverStatus(self.ask, lambda: self.negotiation)
        self._connection: Connection | None = None
        self._requests: BackendRequests | None = None
        self._inflight: Inflight | None = None

    # Asking

    @property
    def negotiation(self) -> Negotiation:
        """What is offered and negotiated."""
        return self._connected().session.negotiation

    @property
    def offered(self) -> Feature:
        """The features that the back-end offers; known after `negotiate()`."""
        return self.negotiation.offered

    @property
    def features(self) -> Feature:
        """The features that are on."""
        return self.negotiation.features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """The protocol features that are on."""
        return self.negotiation.protocol_features

    async def ask(self, message: FrontendMessage, *, need_reply: bool | None = None) -> Reply | None:
        """Send any request; return its reply, which the caller closes, or None where none is due.

        Closes the message's descriptors. With REPLY_ACK each request is acknowledged, unless
        `need_reply` is False. Raises LocalProtocolError for one that must not be sent now.
        """
        return await self._connected().ask(message, need_reply=need_reply)

    # Negotiation

    async def negotiate(
        self,
        features: int | None = None,
        *,
        plus: Feature = Feature.NONE,
        protocol: ProtocolFeature | None = None,
    ) -> None:
        """Begin to use the back-end: features, ownership, the socket for its requests, status, memory.

        `features` are turned on, by default all that are offered but NOT_BY_DEFAULT, and `plus` those
        beside them; PROTOCOL_FEATURES wherever it is offered. `protocol` are the protocol features, by
        default those of PROTOCOL_BY_DEFAULT that are offered. Raises BackendError for features that
        are not offered.
        """
        offered = (await self._get(GetFeatures(), Features)).features
        if Feature.PROTOCOL_FEATURES in offered:
            await self._negotiate_protocol(protocol)
        await self.ask(SetOwner())
        wanted = offered.without(NOT_BY_DEFAULT) if features is None else Feature(features)
        await self.set_features(wanted | plus)
        await self._share_memory()

    async def set_features(self, features: Feature) -> None:
        """Turn exactly these features on (and PROTOCOL_FEATURES), as a driver does that begins again.

        Raises BackendError for some that are not offered, and where the device does not take them together.
        """
        if missing := features.without(self.offered | ALWAYS_ACCEPTED):
            raise BackendError(f"the back-end does not offer {missing}")
        if not self.queues:
            await self._status.reset()
        await self._status.reach(DeviceStatus.DRIVER)
        await self.ask(SetFeatures(features | self.offered & Feature.PROTOCOL_FEATURES))
        await self._status.reach(DeviceStatus.FEATURES_OK)

    async def _negotiate_protocol(self, wanted: ProtocolFeature | None) -> None:
        offered = (await self._get(GetProtocolFeatures(), ProtocolFeatures)).features
        chosen = offered & PROTOCOL_BY_DEFAULT if wanted is None else wanted
        if missing := chosen.without(offered):
            raise BackendError(f"the back-end does not offer the protocol feature {missing}")
        await self.ask(SetProtocolFeatures(chosen), need_reply=False)
        self.memory.user_offset = 0 if ProtocolFeature.GPA_ADDRESSES in chosen else USER_OFFSET
        if ProtocolFeature.MQ in chosen:
            self.num_queues = (await self._get(GetQueueNum(), Number)).value
        if ProtocolFeature.BACKEND_REQ in chosen:
            await self._open_channel()

    async def _open_channel(self) -> None:
        ours, theirs = socket.socketpair()
        self._requests = BackendRequests(FdStream(ours), self._connected().session, self.handlers)
        self._start(self._requests.run)
        await self.ask(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))

    # Memory

    async def add_memory(self, size: int, guest_address: int | None = None) -> Region:
        """Add a region of guest memory, also while queues run. Raises ValueError where it overlaps one."""
        region = self.memory.create(size, guest_address)
        try:
            await self._tell_memory(
                AddMemReg(region.describe(self.memory.user_offset), fds=(region.fd.dup(),))
            )
        except BaseException:
            self.memory.remove(region)
            raise
        return region

    async def remove_memory(self, region: Region) -> None:
        """Take a region away; nothing that the device has may be in it."""
        described = region.describe(self.memory.user_offset)
        self.memory.remove(region)
        await self._tell_memory(RemMemReg(described))

    async def set_memory_table(self) -> None:
        """Replace the back-end's regions by all those of `memory` (SET_MEM_TABLE)."""
        regions = self.memory.regions
        fds = tuple(region.fd.dup() for region in regions)
        table = tuple(region.describe(self.memory.user_offset) for region in regions)
        await self.ask(SetMemTable(table, fds=fds))

    async def _tell_memory(self, change: AddMemReg | RemMemReg) -> None:
        if ProtocolFeature.CONFIGURE_MEM_SLOTS in self.protocol_features:
            await self.ask(change)
        else:
            change.close()
            await self.set_memory_table()

    async def _share_memory(self) -> None:
        if ProtocolFeature.CONFIGURE_MEM_SLOTS not in self.protocol_features:
            await self.set_memory_table()
            return
        for region in self.memory.regions:
            await self.ask(AddMemReg(region.describe(self.memory.user_offset), fds=(region.fd.dup(),)))

    # Queues

    async def start_queue(
        self,
        index: int = 0,
        *,
        size: int = 128,
        kicks: bool = True,
        calls: bool = True,
        enable: bool = True,
        big_endian: bool = False,
    ) -> DriverQueue:
        """Make a queue of `size` in guest memory, packed with RING_PACKED, and start it.

        The first one ends the driver's set-up: where STATUS is on, DRIVER_OK is set once it is started.
        Without `kicks` the back-end has to look at the ring by itself, and without `calls` we do; with
        INBAND_NOTIFICATIONS messages take their place. `big_endian` is for a legacy driver.
        """
        if index in self.queues:
            raise ValueError(f"queue {index} was started before; use resume_queue() or reset()")
        queue = DriverQueue(
            index,
            size,
            self.features,
            self.memory,
            notify=None if kicks else self._inband_kick(index),
            has_calls=calls,
            polls=not calls and ProtocolFeature.INBAND_NOTIFICATIONS not in self.protocol_features,
            big_endian=big_endian,
            patience=self._patience,
        )
        self.queues[index] = queue
        self._start(queue.watch_errors)
        await self._serve(queue, enable=enable)
        await self._status.reach(DeviceStatus.DRIVER_OK)
        return queue

    async def stop_queue(self, queue: DriverQueue) -> int:
        """Stop a queue (GET_VRING_BASE); return where it stopped, which the queue remembers."""
        return await vrings.stop(self.ask, queue)

    async def resume_queue(self, queue: DriverQueue) -> None:
        """Start a queue again that was stopped, from where it stopped."""
        await self._serve(queue)

    async def _serve(self, queue: DriverQueue, *, enable: bool = True) -> None:
        offset = self.memory.user_offset
        await vrings.start(self.ask, queue, self.negotiation, user_offset=offset, enable=enable)

    async def enable_queue(self, queue: DriverQueue, enable: bool = True) -> None:
        """Enable or disable a queue."""
        await self.ask(SetVringEnable(queue.index, enable))

    async def reset(self) -> None:
        """Stop all queues, forget them, and reset the device, as a driver does that begins again.

        The features are then those that were on before, accepted again, until `set_features()`. RESET_OWNER
        is not sent: it is deprecated, and lets DPDK and rust-vmm forget the set-up of the connection, too.
        """
        for queue in list(self.queues.values()):
            await self.stop_queue(queue)
        await self._status.reset()
        if ProtocolFeature.RESET_DEVICE in self.protocol_features:
            await self.ask(ResetDevice())
        self._close_queues()
        await self.set_features(self.features)  # before any queue, as a back-end may have forgotten them

    # Configuration space

    async def get_config(self, size: int, offset: int = 0) -> bytes:
        """Return `size` bytes of the configuration space."""
        return (await self._get(GetConfig(offset, size), Config)).data

    async def set_config(self, offset: int, data: bytes) -> None:
        """Write to the configuration space."""
        await self.ask(SetConfig(offset, data))

    async def config_changed(self) -> None:
        """Wait until the back-end says that its configuration space has changed, since this last returned."""
        await self._handlers.config_event.wait()

    # Migration and restarts

    async def start_log(self) -> DirtyPages:
        """Let the back-end log the pages that it writes to; return the log, which the caller closes."""
        return await migration.start_log(self.ask, self.memory, self.features, self.queues.values())

    async def stop_log(self) -> None:
        """Stop logging."""
        offset = self.memory.user_offset
        await migration.set_log_features(
            self.ask, self.features, self.queues.values(), user_offset=offset, on=False
        )

    async def save_state(self) -> bytes:
        """Return the device's own state; all queues must be stopped."""
        return await migration.save_state(self.ask)

    async def load_state(self, state: bytes) -> None:
        """Give the device the state that `save_state()` returned, here or elsewhere."""
        await migration.load_state(self.ask, state)

    async def track_inflight(self, *, size: int = 128, num_queues: int = 1) -> None:
        """Let the back-end record chains in flight, for queues up to `size`; call it before they start.

        A back-end that `reconnect()` finds gets it back.
        """
        self._forget_inflight()
        self._inflight = await self._get(GetInflightFd(0, 0, num_queues, size), Inflight)
        await self._return_inflight()

    async def _return_inflight(self) -> None:
        if self._inflight is not None:
            await migration.return_inflight(self.ask, self._inflight)

    # The connection

    async def attach(self, stream: FdStream | None, wait_for_backend: float) -> None:
        """Use `stream`, or connect, in the place of a connection that there was; nothing is negotiated."""
        self._disconnect()
        if stream is None:
            assert self._path is not None
            stream = await reach(self._path, wait_for_backend)
        self._connection = Connection(stream, self._patience, self._lost)
        self._status = DriverStatus(self.ask, lambda: self.negotiation)
        self._start(self._connection.run)

    async def reconnect(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        stream: FdStream | None = None,
        wait_for_backend: float = 0,
    ) -> None:
        """Connect again, negotiate what was negotiated, and go on with all queues where the driver is.

        Without `path` and `stream`, it is where it was. With `track_inflight()` the new back-end gets
        back what the old one had; otherwise it begins with the first chain that was not used. Raises
        OSError if the socket has no listener.
        """
        negotiated = self.features, self.protocol_features
        self._path = self._path if path is None else os.fspath(path)
        await self.attach(stream, wait_for_backend)
        await self.negotiate(negotiated[0], protocol=negotiated[1])
        await self._return_inflight()
        for queue in self.queues.values():
            queue.rewind()
            await self._serve(queue)
            await self._status.reach(DeviceStatus.DRIVER_OK)

    def close(self) -> None:
        """Disconnect, and close everything."""
        self._disconnect()
        self._close_queues()
        self._forget_inflight()
        self._handlers.close()
        self.memory.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._requests is not None:
            self._requests.close()

    def _forget_inflight(self) -> None:
        if self._inflight is not None:
            self._inflight.close()
            self._inflight = None

    def _close_queues(self) -> None:
        while self.queues:
            self.queues.popitem()[1].close()

    def _lost(self, error: BackendError) -> None:
        if not self._resilient:
            for queue in self.queues.values():
                queue.fail(error)

    def _connected(self) -> Connection:
        if self._connection is None:
            raise BackendGoneError("no back-end is connected")
        return self._connection

    async def _get(self, message: FrontendMessage, kind: type[_R]) -> _R:
        reply = await self.ask(message)
        assert isinstance(reply, kind)
        return reply

    def _inband_kick(self, index: int) -> Callable[[], None]:
        """Return what kicks a queue without eventfd: a message, or nothing where none may be sent."""

        async def kick() -> None:
            with contextlib.suppress(BackendGoneError):
                await self.ask(VringKick(index))

        def start_kick() -> None:
            if ProtocolFeature.INBAND_NOTIFICATIONS in self.protocol_features:
                self._start(kick)

        return start_kick
