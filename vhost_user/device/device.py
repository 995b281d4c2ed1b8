"""VirtioDevice: the base class of devices; only `run_queue()` has no default."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from protocol.vhost_user import ConfigChange, ProtocolFeature
from protocol.vhost_user.feature_names import names_of
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.words import plural
from vhost_user.device.optional_methods import OPTIONAL_METHODS
from vhost_user.own_code.containment import refuse_async
from vhost_user.transport.frontend_link import FrontendLink

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import IntFlag
    from typing import Self

    from protocol.vhost_user import ConfigFlag
    from protocol.vhost_user.feature_names import FeatureNames
    from vhost_user.queue import Virtqueue
    from vhost_user.simulation.simulation import Simulation

RING_FEATURES = (
    Feature.NOTIFY_ON_EMPTY
    | Feature.ANY_LAYOUT
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
    | Feature.RING_PACKED
    | Feature.RING_RESET
)
"""The features that every device offers, beside its own: those of its queues.

ACCESS_PLATFORM, by which the guest's IOMMU translates, is offered where the user asks for it (--iommu):
QEMU 10 shows a driver all features that the back-end of an rng and other newer types offers. In a machine
with an IOMMU, the driver would then use addresses that QEMU and the back-end do not translate.

The queues also support IN_ORDER, ORDER_PLATFORM and NOTIFICATION_DATA, which a device may add: the first
holds completed chains back until all before them are completed, and the others make no difference to a
vhost-user back-end.
"""

_BACKEND_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CROSS_ENDIAN
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.INBAND_NOTIFICATIONS
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.GET_VRING_BASE_INFLIGHT
    | ProtocolFeature.GPA_ADDRESSES
    | ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
)

_OFFERED_WITH = {
    "read_config": ProtocolFeature.CONFIG,
    "write_config": ProtocolFeature.CONFIG,
    "save_state": ProtocolFeature.DEVICE_STATE,
}
"""The protocol features that a device offers by overriding a method; OPTIONAL_METHODS has others."""


class VirtioDevice:
    """A virtio device. Subclass it, set `device_id`, and write `run_queue()`.

    One object serves one front-end after the other. Its methods are called in the loop's thread;
    those that are not async must return soon. Where they refuse what the front-end asks for, they
    raise RefusedError; any other exception is logged with its traceback and ends the connection.
    """

    device_id: ClassVar[DeviceId]
    """The type of device (virtio 1.3, section 5); a plain number will do, also one that has no name."""
    name: ClassVar[str] = "device"
    """The name of the device on command lines and in logs."""
    num_queues: int = 1
    """The largest number of queues that a driver may use."""
    features: int = 0
    """The feature bits of its type that the device offers, and those of `Feature` beyond RING_FEATURES.

    The bits of an IntFlag of the device's own have names in logs and for `--without`.
    """
    ring_features: Feature = RING_FEATURES
    """The feature bits of its queues that the device offers."""
    protocol_features: ProtocolFeature = ProtocolFeature.NONE
    """Further protocol features, beside those of every device and those of the methods that it has."""
    config: bytes = b""
    """Its configuration space, unless it overrides `read_config()`."""
    shared_memory: Mapping[int, int] = {}
    """The sizes of its shared memory regions by their ids."""
    drain_seconds: float = 1.0
    """The time, in seconds, to complete the outstanding chains when a queue is stopped."""
    simulation: Simulation | None = None
    """The simulation behind the device, for --control; None where there is none."""
    possible_features: ClassVar[int] = 0
    """The feature bits of its type that the device may offer, where `features` depends on the instance."""

    _withheld: Feature = Feature.NONE
    _withheld_protocol: ProtocolFeature = ProtocolFeature.NONE

    def __init_subclass__(cls, **arguments: object) -> None:
        """Convert `device_id`, also an inherited one, to a DeviceId. Raises ValueError for any other value.

        Raises TypeError for an async method that is called without await.
        """
        super().__init_subclass__(**arguments)
        for base in (VirtioDevice, *OPTIONAL_METHODS):
            refuse_async(cls, base)
        if hasattr(cls, "device_id"):
            number: Any = cls.device_id
            if isinstance(number, bool):  # which an enumeration takes for 1 and 0
                raise ValueError(f"{number} is not a device type; give a number")
            cls.device_id = DeviceId(number)

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve `queue` until it is stopped: `async for chain in queue`. Runs as a task of its own.

        Called each time that the front-end starts a queue. It should return soon after the iteration
        has ended, having completed what it can; after `drain_seconds` it is cancelled.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run_queue()")

    async def run_disabled_queue(self, queue: Virtqueue) -> None:
        """Serve, as `run_queue()` does, a queue that is started but disabled: without any side effect.

        What that means is the type's affair: a network device gives the driver no frames, and
        discards those that it sends. By default, such a queue is left as it is until it is enabled.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run_disabled_queue()")

    def only_reads(self, index: int) -> bool:
        """Return whether the device only reads from queue `index`; by default it may write to any queue.

        A chain of such a queue is read as a whole, also where a driver marks some of its buffers as
        writable by mistake. In any other queue, a readable buffer behind a writable one breaks the queue.
        """
        return False

    async def run(self) -> None:
        """Run while a front-end is connected; cancelled when it leaves. By default, does nothing."""

    async def run_host(self) -> None:
        """Run as long as the device is served, with a front-end or without. By default, does nothing.

        Files that the user names are rather opened by `from_options()`, which can refuse them.
        """

    def reset(self) -> None:
        """Return to the initial state, as the driver starts again. Also called at every connection."""

    def negotiated(self, features: Feature) -> None:
        """Called with the features that the driver turned on; may be called again, also while queues run."""

    def withhold(self, feature: IntFlag) -> None:
        """Do not offer `feature` from the next connection on, for a front-end that cannot deal with it.

        It is a Feature, a ProtocolFeature, or one of the device's type, such as NetFeature.

        User Mode Linux, for example, turns on all features that are offered, also RING_PACKED and
        ACCESS_PLATFORM, which it does not support.
        """
        if isinstance(feature, ProtocolFeature):
            self._withheld_protocol |= feature
        else:
            self._withheld |= Feature(int(feature))

    # The configuration space

    def read_config(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the configuration space; missing bytes are sent as zeros."""
        return self.config[offset : offset + size]

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        """Write to the configuration space, for the driver or (ConfigFlag.MIGRATION) for a migration.

        By default, this is refused.
        """
        raise RefusedError(f"{plural(len(data), 'byte')} at {offset}: the configuration space is read-only")

    def notify_config_changed(self) -> None:
        """Tell the driver that the configuration space has changed.

        While all queues are stopped, it is told once one is started. Does nothing while no front-end
        is connected that listens: the next one reads it anyway.
        """
        self.frontend.notify(ConfigChange())

    # Migration of its own state

    def save_state(self) -> bytes:
        """Return the state for the device that continues elsewhere; all queues are stopped."""
        raise RefusedError("the device has no state to save")

    def load_state(self, state: bytes) -> None:
        """Restore the state that `save_state()` returned elsewhere."""
        raise RefusedError("the device has no state to load")

    @cached_property
    def frontend(self) -> FrontendLink:
        """The front-end, for requests that the device makes of it: shared memory, shared objects."""
        return FrontendLink()

    # For the framework

    @property
    def serves_disabled_queues(self) -> bool:
        """True if the device has a `run_disabled_queue()`."""
        return type(self).run_disabled_queue is not VirtioDevice.run_disabled_queue

    def use_iommu(self) -> None:
        """Offer that the guest's IOMMU translates addresses. Call it before a front-end connects."""
        self.ring_features |= Feature.ACCESS_PLATFORM

    @property
    def offered_features(self) -> Feature:
        """All feature bits that a front-end is offered."""
        offered = Feature(self.features) | self.ring_features | Feature.LOG_ALL | Feature.PROTOCOL_FEATURES
        return offered.without(self._withheld)

    @classmethod
    def feature_names(cls) -> FeatureNames:
        """Return the names of the device's features."""
        flags: Any = type(cls.features)
        return names_of(cls.device_id, flags)

    @property
    def offered_protocol_features(self) -> ProtocolFeature:
        """All protocol features that a front-end is offered."""
        offered = class_protocol_features(type(self)) | self.protocol_features
        if self.config:
            offered |= ProtocolFeature.CONFIG
        if self.shared_memory:
            offered |= ProtocolFeature.SHMEM
        return offered.without(self._withheld_protocol)

    def close(self) -> None:
        """Close the files and sockets that the device owns; called by the owner of the device."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def class_protocol_features(device: type[VirtioDevice]) -> ProtocolFeature:
    """Return the protocol features that a class offers because of its methods."""
    offered = _BACKEND_FEATURES | device.protocol_features
    for name, feature in _OFFERED_WITH.items():
        if getattr(device, name) is not getattr(VirtioDevice, name):
            offered |= feature
    for kind, feature in OPTIONAL_METHODS.items():
        if issubclass(device, kind):
            offered |= feature
    return offered
