"""VirtioDevice: what a device author writes; everything but `run_queue()` has a default."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, ClassVar

from protocol.fds import OwnedFd
from protocol.program.command_line import UserError
from protocol.vhost_user import (
    ConfigChange,
    MapFlag,
    ProtocolFeature,
    SharedObjectAdd,
    SharedObjectLookup,
    SharedObjectRemove,
    ShmemMap,
    ShmemUnmap,
)
from protocol.vhost_user.feature_names import names_of
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.words import plural
from vhost_user.attachment.qemu_args import device_of, model_of
from vhost_user.containment import refuse_async
from vhost_user.transport.channel import FrontendError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from enum import IntFlag
    from typing import Self
    from uuid import UUID
    from xml.etree.ElementTree import Element

    from protocol.vhost_user import BackendMessage, ConfigFlag, Reply
    from protocol.vhost_user.feature_names import FeatureNames
    from vhost_user.queue import Virtqueue
    from vhost_user.simulation.simulation import Simulation
    from vhost_user.transport.channel import Channel

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
    "send_rarp": ProtocolFeature.RARP,
    "set_mtu": ProtocolFeature.MTU,
    "create_crypto_session": ProtocolFeature.CRYPTO_SESSION,
    "shared_object": ProtocolFeature.SHARED_OBJECT,
    "save_state": ProtocolFeature.DEVICE_STATE,
}
"""The protocol features that a device offers by overriding a method."""


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
    capabilities: ClassVar[tuple[str, ...]] = ()
    """Options that `--print-capabilities` tells of, where QEMU's vhost-user.json has some for its type."""

    qemu_limits: ClassVar[str] = ""
    """What people have to know of QEMU's support for it, in a few words."""

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
    many_sockets: ClassVar[bool] = False
    """Whether one program can serve many of it (--socket-count), each on a socket of its own."""
    for_one_guest: ClassVar[bool] = False
    """Whether all that one program serves is for the same guest, as --print-qemu-args then has it."""

    possible_features: ClassVar[int] = 0
    """The feature bits of its type that it may offer, where `features` says so only once it is made."""

    _withheld: Feature = Feature.NONE
    _withheld_protocol: ProtocolFeature = ProtocolFeature.NONE
    _channel: Channel | None = None

    def __init_subclass__(cls, **arguments: object) -> None:
        """Have `device_id` be a DeviceId, also an inherited one. Raises ValueError for what is no type.

        Raises TypeError for an async method that is called without await.
        """
        super().__init_subclass__(**arguments)
        refuse_async(cls, VirtioDevice)
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
        if self._channel is not None:
            self._channel.notify(ConfigChange())

    # Migration of its own state

    def save_state(self) -> bytes:
        """Return what a device that goes on elsewhere has to know, with all queues stopped."""
        raise RefusedError("the device has no state to save")

    def load_state(self, state: bytes) -> None:
        """Take over what `save_state()` returned elsewhere."""
        raise RefusedError("the device has no state to load")

    # What only some types of device are asked for

    def send_rarp(self, mac: bytes) -> None:
        """net: broadcast a RARP for the address `mac`."""
        raise RefusedError("the device sends no RARP")

    def set_mtu(self, mtu: int) -> None:
        """net: take notice of the host's MTU."""
        raise RefusedError("the device has no MTU")

    def create_crypto_session(self, description: bytes) -> bytes:
        """crypto: create a session; return the description (a C structure of QEMU's) with its id set."""
        raise RefusedError("the device has no crypto sessions")

    def close_crypto_session(self, session: int) -> None:
        """crypto: close a session."""
        raise RefusedError("the device has no crypto sessions")

    def set_gpu_socket(self, socket: OwnedFd) -> None:
        """gpu: take the socket of the vhost-user-gpu protocol, and close it in the end."""
        socket.close()
        raise RefusedError("the device is no gpu")

    def shared_object(self, uuid: UUID) -> OwnedFd:
        """Return a dma-buf, to be closed by the caller, for an object that `announce_object()` announced."""
        raise RefusedError(f"there is no shared object {uuid}")

    # What it can ask of its front-end. All raise FrontendError where it refuses or is not there.

    async def request(self, message: BackendMessage) -> Reply | None:
        """Send a request; return its reply, which the caller closes, or None if none is due.

        Closes the message's descriptors. Raises FrontendError where the front-end refuses, was not
        told of a feature that it needs, or is not there.
        """
        if self._channel is None:
            message.close()
            raise FrontendError("no front-end is connected that can be asked (it sent no SET_BACKEND_REQ_FD)")
        return await self._channel.request(message)

    async def map_shared_memory(
        self, region: int, fd: int, *, size: int, offset: int = 0, fd_offset: int = 0, writable: bool = True
    ) -> None:
        """Map `size` bytes of the file `fd`, which stays the caller's, into a shared memory region."""
        flags = MapFlag.READ_WRITE if writable else MapFlag(0)
        message = ShmemMap(region, fd_offset, offset, size, flags, fds=(OwnedFd(os.dup(fd)),))
        await self._ask(message)

    async def unmap_shared_memory(self, region: int, *, size: int, offset: int = 0) -> None:
        """Undo a `map_shared_memory()`, as a whole."""
        await self._ask(ShmemUnmap(region, 0, offset, size))

    async def announce_object(self, uuid: UUID) -> None:
        """Offer an object to other devices, which get it from `shared_object()`."""
        await self._ask(SharedObjectAdd(uuid))

    async def withdraw_object(self, uuid: UUID) -> None:
        """Offer an object no longer."""
        await self._ask(SharedObjectRemove(uuid))

    async def look_up_object(self, uuid: UUID) -> OwnedFd:
        """Return the dma-buf of an object that another device offers; the caller closes it."""
        reply = await self.request(SharedObjectLookup(uuid))
        fd = None if reply is None else reply.take_fd()
        if fd is None:
            raise FrontendError(f"the front-end knows no shared object {uuid}")
        return fd

    async def _ask(self, message: BackendMessage) -> None:
        reply = await self.request(message)
        if reply is not None:
            reply.close()

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

    @classmethod
    def find_feature(cls, text: str) -> Feature | ProtocolFeature:
        """Return the feature of that name. Raises ValueError, which tells the names that there are."""
        names = cls.feature_names()
        try:
            return names.find(text)
        except KeyError:
            there = names.choices(
                cls.possible_features or cls.features,
                cls.ring_features | Feature.ACCESS_PLATFORM,
                _protocol_features(cls) | ProtocolFeature.CONFIG,
            )
            raise ValueError(f"'{text}' is no feature of {cls.name}; there are {', '.join(there)}") from None

    @property
    def offered_protocol_features(self) -> ProtocolFeature:
        """All protocol features that a front-end is offered."""
        offered = _protocol_features(type(self)) | self.protocol_features
        if self.config:
            offered |= ProtocolFeature.CONFIG
        if self.shared_memory:
            offered |= ProtocolFeature.SHMEM
        return offered.without(self._withheld_protocol)

    def attach(self, channel: Channel | None) -> None:
        """Ask and notify over `channel` from now on; None: nobody is there."""
        self._channel = channel

    # For command lines

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the device's own options to its command line."""

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Return a device as the command line describes it. Raises UserError where it cannot be had."""
        try:
            inspect.signature(cls).bind()
        except TypeError as error:
            raise UserError(
                f"{cls.__name__}() cannot be made: {error}; override from_options() to say how it is"
            ) from None
        return cls()

    @classmethod
    def socket_paths(cls, options: argparse.Namespace) -> list[str]:
        """Return the paths that the command line says to listen on, one for each device."""
        if options.socket_path is None:
            return []
        if not cls.many_sockets or options.socket_count is None:
            return [options.socket_path]
        return [f"{options.socket_path}{number}" for number in range(options.socket_count)]

    @classmethod
    def all_from_options(cls, options: argparse.Namespace) -> list[Self]:
        """Return the devices that the command line describes, one for each of `socket_paths()`.

        What is simulated behind all of them is one object. Raises UserError where one cannot be had.
        """
        return [cls.from_options(options)]

    @classmethod
    def qemu_model(cls) -> str:
        """Return what QEMU calls the device that is the front-end for this type."""
        return model_of(cls.device_id)

    @classmethod
    def qemu_device(cls, options: argparse.Namespace) -> str:
        """Return what QEMU calls the device, with the properties that must match the command line.

        By default with what QEMU has to know of a type that it does not: a device is made, and asked.
        Raises UserError where it cannot be.
        """
        return device_of(cls, options)

    @classmethod
    def qemu_attachment(cls, options: argparse.Namespace, chardev: str, properties: str) -> str:
        """Return the QEMU options that attach the device to a chardev; `properties` begin with a comma."""
        return f"-device {cls.qemu_device(options)}{properties},chardev={chardev}"

    @classmethod
    def libvirt_element(cls, options: argparse.Namespace) -> Element | None:
        """Return libvirt's element for the device at `options.socket_path`; None where libvirt has none.

        By default there is one for disks only; all others are had by QEMU's options.
        """
        from vhost_user.attachment.libvirt import element_of

        return element_of(cls, options)

    def close(self) -> None:
        """Let go of what the device holds of the host; whoever made it calls this."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _protocol_features(device: type[VirtioDevice]) -> ProtocolFeature:
    """Return the protocol features that are offered because a class can do them."""
    offered = _BACKEND_FEATURES | device.protocol_features
    for name, feature in _OFFERED_WITH.items():
        if getattr(device, name) is not getattr(VirtioDevice, name):
            offered |= feature
    return offered
