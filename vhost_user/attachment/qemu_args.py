"""What to give QEMU so that a guest has a device (--print-qemu-args)."""

from __future__ import annotations

import argparse
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from protocol.program.command_line import UserError
from protocol.program.qemu import socket_chardev
from protocol.vhost_user import MAX_CONFIG_SIZE
from protocol.vhost_user.features import ProtocolFeature
from protocol.virtio.ids import DeviceId
from vhost_user.attachment.qemu import DEFAULT_PROGRAM, ask_version

if TYPE_CHECKING:
    from vhost_user.device import VirtioDevice

_MODELS = {
    DeviceId.BLOCK: "blk",
    DeviceId.FS: "fs",
    DeviceId.GPIO: "gpio",
    DeviceId.GPU: "gpu",
    DeviceId.I2C_ADAPTER: "i2c",
    DeviceId.INPUT: "input",
    DeviceId.RNG: "rng",
    DeviceId.SCMI: "scmi",
    DeviceId.SCSI: "scsi",
    DeviceId.SOUND: "snd",
    DeviceId.SPI: "spi",
    DeviceId.VSOCK: "vsock",
}
"""What QEMU calls its front-ends, between "vhost-user-" and "-pci"."""

_GENERIC_MODEL = "vhost-user-test-device-pci"
"""What QEMU has for any type from 10.2 on."""

_TRANSITIONAL = frozenset({DeviceId.BLOCK, DeviceId.NET, DeviceId.SCSI})
"""The types that QEMU offers to legacy drivers, too, unless told not to: they know nothing of an IOMMU."""

_RECONNECTING = frozenset({DeviceId.BLOCK, DeviceId.NET})
"""The types whose front-end in QEMU connects again to a back-end that ended. All others refuse to start with
such a chardev, or abort (QEMU 7.2)."""

_MILLISECONDS = (9, 2)
"""The first QEMU that has `reconnect-ms`. There is no `reconnect` any more from 11.1 on."""

_MEMORY = "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem"


def qemu_args(device: type[VirtioDevice], options: argparse.Namespace) -> str:
    """Return the QEMU options for a guest with this device, quoted for a shell. Raises UserError.

    Where the command line has several devices, each is for a guest of its own, on a line of its own,
    unless the device says that they are for one.
    """
    each = [attachment(device, own) for own in for_each_socket(device, options, "--print-qemu-args")]
    if device.for_one_guest:
        return " ".join([_MEMORY, *each])
    return "\n".join(f"{_MEMORY} {one}" for one in each)


def for_each_socket(
    device: type[VirtioDevice], options: argparse.Namespace, what: str
) -> list[argparse.Namespace]:
    """Return the options as they are for each socket: `socket_path`, also that of --connect, and `number`.

    Raises UserError, which names `what` needs a path, where there is none.
    """
    paths = device.socket_paths(options) or [options.connect]
    if paths == [None]:
        raise UserError(f"{what} needs the path of the socket; give --socket-path or --connect")
    return [
        argparse.Namespace(**vars(options) | {"socket_path": path, "number": number})
        for number, path in enumerate(paths)
    ]


def model_of(device_id: DeviceId) -> str:
    """Return what QEMU calls the front-end for this type of device."""
    name = _MODELS.get(device_id)
    return _GENERIC_MODEL if name is None else f"vhost-user-{name}-pci"


def device_of(device: type[VirtioDevice], options: argparse.Namespace) -> str:
    """Return QEMU's device for what is not said otherwise, with the properties that must match it.

    Where QEMU has to be told how the device is, that is asked of one: it is made as the command line
    describes it, and closed. Raises UserError where it cannot be.
    """
    if device.qemu_model() == _GENERIC_MODEL:
        with ExitStack() as stack:
            made = [stack.enter_context(one) for one in device.all_from_options(options)][options.number]
            return generic_device(made.device_id, made.num_queues, _config_size(made), options)
    if device.device_id is DeviceId.BLOCK:  # which has as many queues in QEMU as the guest has processors
        return f"{device.qemu_model()},num-queues={device.num_queues}"
    if device.device_id is DeviceId.FS:
        return f"{device.qemu_model()},tag={_identifier(device.name)}"
    return device.qemu_model()


def generic_device(
    device_id: DeviceId, num_queues: int, config_size: int, options: argparse.Namespace
) -> str:
    """Return QEMU's device for any type, told how this one is."""
    # Told of a configuration space that it does not get, QEMU does not start.
    config = (
        f",config_size={config_size}" if config_size and ProtocolFeature.CONFIG not in options.without else ""
    )
    return f"{_GENERIC_MODEL},virtio-id={int(device_id)},num_vqs={num_queues}{config}"


def _config_size(device: VirtioDevice) -> int:
    """Return how many bytes the configuration space has; 0 where there is none. Raises UserError."""
    if ProtocolFeature.CONFIG not in device.offered_protocol_features:
        return 0
    try:
        device.reset()
        return len(device.read_config(0, MAX_CONFIG_SIZE))
    except Exception as error:
        kind = type(device).__name__
        raise UserError(
            f"the configuration space of {kind} cannot be read: {type(error).__name__}: {error};"
            " override qemu_device() to say its config_size"
        ) from error


def attachment(device: type[VirtioDevice], options: argparse.Namespace, properties: str = "") -> str:
    """Return the chardev and the device on it, with `properties` of the latter, quoted for a shell.

    The options are those `for_each_socket()`. Raises UserError.
    """
    name = f"{_identifier(device.name)}{options.number if device.for_one_guest else 0}"
    if options.iommu:
        legacy = ",disable-legacy=on" if device.device_id in _TRANSITIONAL else ""
        properties += f",iommu_platform=on,ats=on{legacy}"
    chardev = socket_chardev(_chardev_properties(device, options), id=name, path=options.socket_path)
    return f"{chardev} {device.qemu_attachment(options, name, properties)}"


def _identifier(name: str) -> str:
    """Return `name` as QEMU takes it for an id: letters, digits and -._ after a letter."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    return plain if plain[:1].isalpha() else f"device{plain}"


def _chardev_properties(device: type[VirtioDevice], options: argparse.Namespace) -> str:
    """Return what the chardev has beside its path: how QEMU listens, or connects again. Raises UserError."""
    if options.connect is not None:
        return ",server=on"
    if device.device_id not in _RECONNECTING:
        return ""
    return ",reconnect-ms=1000" if _qemu_version(options) >= _MILLISECONDS else ",reconnect=1"


def _qemu_version(options: argparse.Namespace) -> tuple[int, ...]:
    """Return the version of the QEMU that the options are for; where there is none, that of a new one."""
    version = ask_version(options.qemu or DEFAULT_PROGRAM)
    if not version and options.qemu is not None:
        raise UserError(
            f"there is no QEMU '{options.qemu}' here to be asked for its version; give another --qemu"
        )
    return tuple(map(int, re.findall(r"\d+", version)[:2])) or _MILLISECONDS
