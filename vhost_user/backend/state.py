"""ConnectionState: all that one front-end sets up with its requests, from its connection to its end."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from protocol.vhost_user import BackendIotlbMsg, BackendSession, IotlbType, Permission, ProtocolFeature
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from protocol.virtio.status import DeviceStatus
from vhost_user.backend.vring import Vring
from vhost_user.memory.iotlb import Access
from vhost_user.memory.regions import BadAddressError, GuestMemory, IotlbMissError
from vhost_user.memory.sharing import is_private
from vhost_user.transport.channel import Channel, FrontendError

if TYPE_CHECKING:
    from protocol.io import EventFd, FdStream
    from vhost_user.backend.device_state import StateTransfer
    from vhost_user.device import VirtioDevice
    from vhost_user.memory.dirty_log import DirtyLog
    from vhost_user.memory.inflight_file import InflightBuffer

MAX_MEMORY_SLOTS = 509
"""Memory regions that we can have (GET_MAX_MEM_SLOTS); as many as Linux's vhost and QEMU's own back-ends."""

_log = logging.getLogger("vhost_user")


class ConnectionState:
    """The state of one connection. Tasks run in `nursery`; `close()` closes the rest in the end."""

    def __init__(self, device: VirtioDevice, nursery: trio.Nursery, front_end_pid: int) -> None:
        self.device = device
        self._front_end_pid = front_end_pid
        self.nursery = nursery
        self.session = BackendSession(device.offered_features, device.offered_protocol_features)
        self.memory = GuestMemory()
        self.repeated_regions: Counter[tuple[int, int, int]] = Counter()
        """How often more than once memory regions were added, by their places."""
        self.vrings = [Vring(index, self) for index in range(device.num_queues)]
        self.status = DeviceStatus(0)
        self.channel: Channel | None = None
        self.inflight: InflightBuffer | None = None
        self.log: DirtyLog | None = None
        """The dirty log that the front-end gave; in use while LOG_ALL is on."""
        self.log_event: EventFd | None = None
        self.transfer: StateTransfer | None = None
        self._iotlb_changed = trio.lowlevel.ParkingLot()
        self._told_unshared = False
        self._looked_at: set[tuple[int, int]] = set()
        """Files of memory of which it is known, and was told, whether they are shared."""

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
        return not any(vring.setup.started for vring in self.vrings)

    def resumed(self) -> None:
        """Send what waited for a ring to be started."""
        if self.channel is not None:
            self.channel.resume()

    async def stop_vrings(self) -> None:
        """Stop all rings, together."""
        async with trio.open_nursery() as nursery:
            for vring in self.vrings:
                nursery.start_soon(vring.stop)

    def use_log(self) -> None:
        """Log writes to memory, or no longer, as features and the front-end's log say."""
        self.memory.log = self.log if Feature.LOG_ALL in self.features else None

    def memory_changed(self) -> None:
        """Let go of guest memory that was taken away, and look at what was added."""
        for vring in self.vrings:
            vring.memory_changed()
        files = self.memory.files
        for file, region in files.items():
            if file not in self._looked_at and is_private(file, self._front_end_pid):
                self._told_unshared = True
                _log.warning(
                    "the guest's memory at %#x is not shared: the front-end has a copy of its own, of which"
                    " nothing is seen here; add share=on to QEMU's memory-backend object",
                    region.guest_address,
                )
        self._looked_at = set(files)

    def open_channel(self, stream: FdStream) -> None:
        """Make our own requests over `stream` from now on."""
        if self.channel is not None:
            self.channel.close()
        self.channel = Channel(stream, self.session, lambda: self.is_suspended)
        self.device.frontend.attach(self.channel)
        self.nursery.start_soon(self.channel.run, name="back-end channel")

    def close(self) -> None:
        """Close what is open and unmap what is mapped; nothing runs any more."""
        self.device.frontend.attach(None)
        for vring in self.vrings:
            vring.setup.close()
        if self.channel is not None:
            self.channel.close()
        if self.log_event is not None:
            self.log_event.close()
        if self.transfer is not None:
            self.transfer.close()
        self.log = self.memory.log = self.inflight = None
        self.memory.close()
        self.session.close()

    # What the rings need

    @property
    def inband(self) -> Channel | None:
        """The channel for notifications, where they go in-band."""
        return self.channel if self.has(ProtocolFeature.INBAND_NOTIFICATIONS) else None

    def inflight_part(self, index: int, size: int) -> memoryview | None:
        """Return where queue `index`, with a ring of `size`, notes what is in flight, if it can."""
        if self.inflight is None:
            return None
        return self.inflight.part(index, size, packed=Feature.RING_PACKED in self.features)

    def signal_log(self) -> None:
        """Tell that the dirty log has changed, if the front-end wants to know."""
        if self.log_event is None:
            return
        try:
            self.log_event.signal()
        except OSError as error:
            _log.error("the descriptor of SET_LOG_FD is not an eventfd: %s", error.strerror)
            self.log_event.close()
            self.log_event = None

    def untracked(self, index: int, size: int) -> None:
        """Say that queue `index` has no room in the in-flight buffer, if there is one."""
        if (buffer := self.inflight) is not None:
            _log.warning(
                "queue %d has %d entries, and no room in the in-flight buffer, which was made for %d queues"
                " of %d: what is under way is lost to the driver if the back-end dies; with a reboot, the"
                " front-end asks for another buffer",
                *(index, size, buffer.num_queues, buffer.queue_size),
            )

    def memory_not_shared(self, index: int) -> None:
        """Say, once, that the guest's memory is not what we see."""
        if not self._told_unshared:
            self._told_unshared = True
            _log.warning(
                "queue %d: the driver kicks, but its ring is all zeros: the guest's memory is not shared;"
                " add share=on to QEMU's memory-backend object",
                index,
            )

    def iotlb_changed(self) -> None:
        """Wake who waits for a translation."""
        self._iotlb_changed.unpark_all()

    async def resolve(self, miss: IotlbMissError) -> None:
        """Have the front-end say what is at an address. Raises BadAddressError where nothing is."""
        if self.channel is None:
            raise BadAddressError(f"{miss}, and it gave no channel to ask over (SET_BACKEND_REQ_FD)")
        while not self._is_mapped(miss):
            before = self.memory.invalidations
            try:
                reply = await self.channel.request(_iotlb_message(miss, IotlbType.MISS))
            except FrontendError as error:
                self._report_denied(miss)
                raise BadAddressError(f"{miss}: {error}") from error
            while reply is None and not self._is_mapped(miss):
                await self._iotlb_changed.park()
            # What was told may be invalidated before we come to look: Linux has all of it invalidated
            # together, at any time, what it still uses, too.
            if not self._is_mapped(miss) and self.memory.invalidations == before:
                self._report_denied(miss)
                raise BadAddressError(str(miss))

    def _report_denied(self, miss: IotlbMissError) -> None:
        """Tell the front-end that the driver gave an address that its IOMMU does not permit."""
        if self.channel is not None:
            self.channel.notify(_iotlb_message(miss, IotlbType.ACCESS_FAIL), miss.iova)

    def _is_mapped(self, miss: IotlbMissError) -> bool:
        try:
            self.memory.window(miss.iova, write=Access.WRITE in miss.access)
        except IotlbMissError:
            return False
        except BadAddressError:
            pass
        return True


def _iotlb_message(miss: IotlbMissError, kind: IotlbType) -> BackendIotlbMsg:
    return BackendIotlbMsg(miss.iova, 1, 0, Permission(int(miss.access)), kind)
