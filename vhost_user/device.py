"""VirtioDevice: what a device author writes; everything but `run_queue()` has a default."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from protocol.vhost_user import ConfigChange, ProtocolFeature
from protocol.vhost_user.feature_names import names_of
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.words import plural
from vhost_user.containment import refuse_async
from vhost_user.frontend_link import FrontendLink
from vhost_user.optional_methods import OPTIONAL_METHODS

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
"""What every device offers beside its own features, because its queues can do it.

ACCESS_PLATFORM, by which the guest's IOMMU translates, is offered where the user wants it (--iommu):
QEMU 10 shows a driver all that the back-end of an rng and other newer types offers. In a machine with
an IOMMU, the driver would then give addresses that QEMU and the back-end do not translate.

They can also do IN_ORDER, ORDER_PLATFORM and NOTIFICATION_DATA, which a device offers if it wants
them: the first holds completed chains back until all before them are completed, and the others make
no difference to a vhost-user back-end.
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
"""The protocol features that a device offers by overriding a method, beside those of OPTIONAL_METHODS."""


class VirtioDevice:
    """A virtio device. Subclass it, set `device_id`, and write `run_queue()`.

    One object serves one front-end after the other. Its methods are called in the loop's thread;
    those that are not async must return soon. Where they refuse what the front-end asks for, they
    raise RefusedError; any other exception is logged with its traceback and ends the connection.
    """

    device_id: ClassVar[DeviceId]
    """The type of device (virtio 1.2, section 5); a plain number will do, also one that has no name."""
    name: ClassVar[str] = "device"
    """What command lines call it."""
    num_queues: int = 1
    """How many queues it has at most."""
    features: int = 0
    """The feature bits of its type that it offers, and those of `Feature` beyond RING_FEATURES.

    Where that is an IntFlag of the device's own, its bits have names in logs and for `--without`.
    """
    ring_features: Feature = RING_FEATURES
    """The feature bits of its queues that it offers."""
    protocol_features: ProtocolFeature = ProtocolFeature.NONE
    """What it offers beside what every device offers, and what follows from the methods it overrides."""
    config: bytes = b""
    """Its configuration space, unless it overrides `read_config()`."""
    shared_memory: Mapping[int, int] = {}
    """The sizes of its shared memory regions by their ids."""
    drain_seconds: float = 1.0
    """How long it may take to complete what it has when a queue is stopped."""
    simulation: Simulation | None = None
    """What is simulated behind it, for --control; None: nothing is."""
    possible_features: ClassVar[int] = 0
    """The feature bits of its type that it may offer, where `features` says so only once it is made."""

    _withheld: Feature = Feature.NONE
    _withheld_protocol: ProtocolFeature = ProtocolFeature.NONE

    def __init_subclass__(cls, **arguments: object) -> None:
        """Have `device_id` be a DeviceId, also an inherited one. Raises ValueError for what is no type.

        Raises TypeError for an async method that is called without await.
        """
        super().__init_subclass__(**arguments)
        for base in (VirtioDevice, *OPTIONAL_METHODS):
            refuse_async(cls, base)
        if hasattr(cls, "device_id"):
            number: Any = cls.device_id
            if isinstance(number, bool):  # which an enumeration takes for 1 and 0
                raise ValueError(f"{number} is no type of device; give a number")
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
        """Tell whether the device only reads from queue `index`; by default it may write to any.

        A chain of that queue is read as a whole, also where a driver calls some of its buffers writable
        by mistake. Elsewhere, something to be read behind such a buffer breaks the queue.
        """
        return False

    async def run(self) -> None:
        """Do what is to be done while a front-end is connected; by default nothing. Cancelled at its end."""

    async def run_host(self) -> None:
        """Do what is to be done as long as the device is served, whether a front-end is there or not.

        By default nothing. What may fail because of the user is rather opened by `from_options()`.
        """

    def reset(self) -> None:
        """Forget all that a driver has changed: the driver begins anew. Called at every connection, too."""

    def negotiated(self, features: Feature) -> None:
        """Take notice of the features that the driver turned on; may come again, also while queues run."""

    def withhold(self, feature: IntFlag) -> None:
        """Do not offer `feature` from the next connection on: for a front-end that it does not suit.

        It is a Feature, a ProtocolFeature, or one of the device's type, such as NetFeature.

        User Mode Linux, for one, turns on whatever is offered, RING_PACKED and ACCESS_PLATFORM too,
        and has neither.
        """
        if isinstance(feature, ProtocolFeature):
            self._withheld_protocol |= feature
        else:
            self._withheld |= Feature(int(feature))

    # The configuration space

    def read_config(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the configuration space; missing ones are sent as zeros."""
        return self.config[offset : offset + size]

    def write_config(self, offset: int, data: bytes, flags: ConfigFlag) -> None:
        """Take what the driver (or with ConfigFlag.MIGRATION a migration) writes; by default refuse it."""
        raise RefusedError(f"{plural(len(data), 'byte')} at {offset}: the configuration space is read-only")

    def notify_config_changed(self) -> None:
        """Tell the driver that the configuration space has changed.

        While all queues are stopped, it is told once one is started. Does nothing while no front-end
        is connected that listens: the next one reads it anyway.
        """
        self.frontend.notify(ConfigChange())

    # Migration of its own state

    def save_state(self) -> bytes:
        """Return what a device that goes on elsewhere has to know, with all queues stopped."""
        raise RefusedError("the device has no state to save")

    def load_state(self, state: bytes) -> None:
        """Take over what `save_state()` returned elsewhere."""
        raise RefusedError("the device has no state to load")

    @cached_property
    def frontend(self) -> FrontendLink:
        """The front-end, for requests that the device makes of it: shared memory, shared objects."""
        return FrontendLink()

    # For the framework

    @property
    def serves_disabled_queues(self) -> bool:
        """True if there is a `run_disabled_queue()`."""
        return type(self).run_disabled_queue is not VirtioDevice.run_disabled_queue

    def use_iommu(self) -> None:
        """Offer from now on that the guest's IOMMU translates addresses. Before a front-end connects."""
        self.ring_features |= Feature.ACCESS_PLATFORM

    @property
    def offered_features(self) -> Feature:
        """All feature bits that a front-end is offered."""
        offered = Feature(self.features) | self.ring_features | Feature.LOG_ALL | Feature.PROTOCOL_FEATURES
        return offered.without(self._withheld)

    @classmethod
    def feature_names(cls) -> FeatureNames:
        """Return what its features are called."""
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
        """Let go of what the device holds of the host; whoever made it calls this."""

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
