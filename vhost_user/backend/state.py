"""ConnectionState: the set-up of one connection, from its begin to its end."""

# How it works: the handlers of requests run in one task, one after the other, and alone change what is here.
# The other tasks of the connection use it: one a ring that is served (`vring`), one a channel, at most one
# for a transfer of the device's state, and the device's own. All run in `nursery`, in one thread.
#
# Descriptors: guest memory closes those of its regions once they are mapped, and unmaps a region when no
# chain refers to it any more. A vring's notifier owns its eventfds; the channel its socket; the transfer its
# pipe; `dirty` its eventfd. `close()` closes them all, when no task runs any more. The stream is the
# connection's. When the process dies, the kernel does the same, and the in-flight buffer and the dirty log,
# files of the front-end's or of ours that it has, keep what was written.

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import BackendSession, ProtocolFeature
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import DeviceStatus, Feature
from vhost_user.backend.dirty_logging import DirtyLogging
from vhost_user.backend.inflight import InflightNotes
from vhost_user.backend.iommu import IommuResolver
from vhost_user.backend.sharing import SharingCheck
from vhost_user.backend.vring import Vring, VringContext
from vhost_user.memory.regions import GuestMemory
from vhost_user.transport.channel import Channel

if TYPE_CHECKING:
    from protocol.io import FdStream
    from vhost_user.backend.device_state import StateTransfer
    from vhost_user.device import VirtioDevice

MAX_MEMORY_SLOTS = 509
"""Memory regions that we can have (GET_MAX_MEM_SLOTS); as many as Linux's vhost and QEMU's own back-ends."""


class ConnectionState:
    """The state of one connection. Tasks run in `nursery`; `close()` closes the rest in the end."""

    def __init__(self, device: VirtioDevice, nursery: trio.Nursery, front_end_pid: int) -> None:
        self.device = device
        self.nursery = nursery
        self.session = BackendSession(device.offered_features, device.offered_protocol_features)
        self.memory = GuestMemory()
        self.repeated_regions: Counter[tuple[int, int, int]] = Counter()
        """How often more than once memory regions were added, by their places."""
        self.status = DeviceStatus(0)
        self.channel: Channel | None = None
        self.iommu = IommuResolver(self.memory, lambda: self.channel)
        self.inflight = InflightNotes(self.session.negotiation)
        self.dirty = DirtyLogging()
        self.transfer: StateTransfer | None = None
        self._sharing = SharingCheck(self.memory, front_end_pid)
        context = VringContext(
            device,
            self.memory,
            nursery,
            self.session.negotiation,
            iommu=self.iommu,
            inflight=self.inflight,
            dirty=self.dirty,
            sharing=self._sharing,
            inband=self._inband,
            resumed=self._resumed,
        )
        self.vrings = [Vring(index, context) for index in range(device.num_queues)]

    @property
    def features(self) -> Feature:
        """The features that were negotiated."""
        return self.session.features

    def has(self, feature: ProtocolFeature) -> bool:
        """Tell whether a protocol feature was negotiated."""
        return feature in self.session.protocol_features

    def vring(self, index: int) -> Vring:
        """Return a ring. Raises RefusedError for one that the device does not have."""
        if index >= len(self.vrings):
            raise RefusedError(f"there is no queue {index}: the device has {len(self.vrings)}")
        return self.vrings[index]

    @property
    def is_suspended(self) -> bool:
        """True while all rings are stopped, enabled or not: nothing is sent to the front-end unasked then."""
        return not any(vring.is_started for vring in self.vrings)

    async def stop_vrings(self) -> None:
        """Stop all rings, together."""
        async with trio.open_nursery() as nursery:
            for vring in self.vrings:
                nursery.start_soon(vring.stop)

    def use_log(self) -> None:
        """Log writes to memory, or do not, as features and the front-end's log say."""
        self.memory.log = self.dirty.log if Feature.LOG_ALL in self.features else None

    def memory_changed(self) -> None:
        """Let go of guest memory that was taken away, and look at what was added."""
        for vring in self.vrings:
            vring.memory_changed()
        self._sharing.check_files()

    def open_channel(self, stream: FdStream) -> None:
        """Make our own requests over `stream` from now on."""
        if self.channel is not None:
            self.channel.close()
        self.channel = Channel(stream, self.session, lambda: self.is_suspended)
        self.device.frontend.attach(self.channel)
        self.nursery.start_soon(self.channel.run, name="back-end channel")

    def close(self) -> None:
        """Close what is open and unmap what is mapped. Call it when no task runs any more."""
        self.device.frontend.attach(None)
        for vring in self.vrings:
            vring.notifier.close()
        if self.channel is not None:
            self.channel.close()
        if self.transfer is not None:
            self.transfer.close()
        self.dirty.close()
        self.memory.log = self.inflight.buffer = None
        self.memory.close()
        self.session.close()

    def _inband(self) -> Channel | None:
        """Return the channel for notifications, where they go in-band."""
        return self.channel if self.has(ProtocolFeature.INBAND_NOTIFICATIONS) else None

    def _resumed(self) -> None:
        """Send the notifications that were kept until a ring was started."""
        if self.channel is not None:
            self.channel.resume()
