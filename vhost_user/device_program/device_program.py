"""DeviceProgram: a device as a program, with options and attachment to a guest."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from protocol.program.command_line import UserError
from protocol.vhost_user import MAX_CONFIG_SIZE, ProtocolFeature
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from vhost_user.device.device import VirtioDevice, class_protocol_features
from vhost_user.device_program import qemu_args

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

_FROM_CLASS = (
    "capabilities",
    "qemu_limits",
    "add_options",
    "qemu_model",
    "qemu_device",
    "qemu_attachment",
    "libvirt_element",
)
"""What a device class may say itself, under the same name; beside `from_options()`, for `make()`."""

_NOT_FROM_CLASS = ("many_sockets", "for_one_guest", "socket_paths", "all_from_options")
"""What only a DeviceProgram can say; the last one is its `make()`."""


class DeviceProgram:
    """The program of a device: its options, the devices that these describe, and what attaches them.

    Most devices need none of their own: `DeviceProgram(MyDevice)` asks the class, which may have the
    class methods `add_options(parser)` and `from_options(options)`. Subclass it for one program that
    serves several devices, set `device`, and name the subclass where a device class could be named::

        class BellProgram(DeviceProgram):
            device = Bell
            many_sockets = True

            def make(self, options):
                tower = Tower()
                return [Bell(tower) for _ in self.socket_paths(options)]
    """

    device: type[VirtioDevice]
    """The class of the devices."""
    capabilities: tuple[str, ...] = ()
    """Options that `--print-capabilities` lists, where QEMU's vhost-user.json has some for the type."""
    qemu_limits: str = ""
    """Limits of QEMU's support for the device, in a few words for `vhost-user list`."""
    many_sockets: bool = False
    """Whether one program can serve several front-ends (--socket-count), each on a socket of its own."""
    for_one_guest: bool = False
    """Whether all devices of one program are for the same guest; --print-qemu-args prints them together."""

    def __init__(self, device: type[VirtioDevice] | None = None) -> None:
        """Take `device`, by default that of the class, and what it says itself of its program.

        Raises UserError where the device says what only a DeviceProgram can.
        """
        if device is not None:
            self.device = device
        kind = self.device.__name__
        for name in _NOT_FROM_CLASS:
            if hasattr(self.device, name):
                new = "make" if name == "all_from_options" else name
                raise UserError(
                    f"{kind}.{name} is not used: write a DeviceProgram with device = {kind} and {new},"
                    " and name that (see docs/your-own-device.md)"
                )
        for name in _FROM_CLASS:
            if hasattr(self.device, name):
                setattr(self, name, getattr(self.device, name))
        if hasattr(self.device, "from_options"):
            setattr(self, self.make.__name__, self._make_one)

    @property
    def name(self) -> str:
        """The name of the device on command lines."""
        return self.device.name

    @property
    def device_id(self) -> DeviceId:
        """The type of the device."""
        return self.device.device_id

    @property
    def summary(self) -> str:
        """The first line of the device's docstring; its class name where it has none."""
        for kind in self.device.__mro__[: self.device.__mro__.index(VirtioDevice)]:
            if text := (kind.__doc__ or "").strip():
                return text.splitlines()[0]
        return self.device.__name__

    # Options

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the device's own options to `parser`; by default none."""

    def make(self, options: argparse.Namespace) -> Sequence[VirtioDevice]:
        """Return the devices that the command line describes, one for each socket; the caller closes them.

        All have the same `simulation`, if any: the one behind --control. By default there is one device,
        from the class's `from_options()`, or made without arguments. Raises UserError.
        """
        try:
            inspect.signature(self.device).bind()
        except TypeError as error:
            raise UserError(
                f"{self.device.__name__}() cannot be made: {error}; write from_options() to give it its"
                " arguments"
            ) from None
        return [self.device()]

    def _make_one(self, options: argparse.Namespace) -> Sequence[VirtioDevice]:
        """Return the device that the class itself makes."""
        device: Any = self.device
        return [device.from_options(options)]

    def socket_paths(self, options: argparse.Namespace) -> list[str]:
        """Return the paths to listen on, one for each device; none with --fd and --connect."""
        if options.socket_path is None:
            return []
        if not self.many_sockets or options.socket_count is None:
            return [options.socket_path]
        return [f"{options.socket_path}{number}" for number in range(options.socket_count)]

    def find_feature(self, text: str) -> Feature | ProtocolFeature:
        """Return the feature of that name, of the device, its queues or vhost-user.

        Raises ValueError for any other name, which lists those that there are.
        """
        device = self.device
        names = device.feature_names()
        try:
            return names.find(text)
        except KeyError:
            there = names.choices(
                device.possible_features or device.features,
                device.ring_features | Feature.ACCESS_PLATFORM,
                class_protocol_features(device) | ProtocolFeature.CONFIG,
            )
            raise ValueError(
                f"'{text}' is not a feature of {self.name}; there are {', '.join(there)}"
            ) from None

    # Attachment to a guest

    def qemu_model(self) -> str:
        """Return QEMU's name for the front-end of this type."""
        return qemu_args.model_of(self.device_id)

    def qemu_device(self, options: argparse.Namespace) -> str:
        """Return QEMU's name for the device, with the properties that must match the command line.

        `options` are those of one socket, with its `number`. For a type that QEMU does not know, a
        device is made and asked for its queues and its configuration space. Raises UserError.
        """
        model = self.qemu_model()
        if model != qemu_args.GENERIC_MODEL:
            return model + qemu_args.own_properties(self.device_id, self.name, self.device.num_queues)
        with ExitStack() as stack:
            device = [stack.enter_context(each) for each in self.make(options)][options.number]
            return qemu_args.generic_device(
                self.device_id, device.num_queues, _config_size(device), options.without
            )

    def qemu_attachment(self, options: argparse.Namespace, chardev: str, properties: str) -> str:
        """Return the QEMU options that attach the device to a chardev; `properties` begin with a comma."""
        return f"-device {self.qemu_device(options)}{properties},chardev={chardev}"

    def libvirt_element(self, options: argparse.Namespace) -> Element | None:
        """Return libvirt's element for the device at `options.socket_path`; None where libvirt has none.

        By default only disks have one; any other device is attached by QEMU's options.
        """
        if self.device_id is not DeviceId.BLOCK:
            return None
        from vhost_user.device_program import libvirt

        return libvirt.disk(options, {"queues": self.device.num_queues})

    def qemu_args(self, options: argparse.Namespace) -> str:
        """Return what --print-qemu-args prints: QEMU's options for each guest. Raises UserError."""
        paths = self.socket_paths(options)
        return qemu_args.qemu_args(self, qemu_args.for_each_socket(paths, options, "--print-qemu-args"))

    def libvirt_xml(self, options: argparse.Namespace) -> str:
        """Return what --print-libvirt-xml prints: the children of <domain>. Raises UserError."""
        from vhost_user.device_program import libvirt

        paths = self.socket_paths(options)
        return libvirt.libvirt_xml(self, qemu_args.for_each_socket(paths, options, "--print-libvirt-xml"))


def _config_size(device: VirtioDevice) -> int:
    """Return the size of the configuration space in bytes; 0 where there is none. Raises UserError."""
    if ProtocolFeature.CONFIG not in device.offered_protocol_features:
        return 0
    try:
        device.reset()
        return len(device.read_config(0, MAX_CONFIG_SIZE))
    except Exception as error:
        raise UserError(
            f"the configuration space of {type(device).__name__} cannot be read:"
            f" {type(error).__name__}: {error}; override qemu_device() to say its config_size"
        ) from error
