"""QEMU's options for a guest with a device (--print-qemu-args)."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Protocol

from protocol.program.command_line import UserError
from protocol.program.qemu import socket_chardev
from protocol.vhost_user.features import ProtocolFeature
from protocol.virtio.ids import DeviceId
from vhost_user.device_program.qemu import DEFAULT_PROGRAM, ask_version

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

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
"""QEMU's names for its front-ends, between "vhost-user-" and "-pci"."""

GENERIC_MODEL = "vhost-user-test-device-pci"
"""QEMU's front-end for any other type, from 10.2 on."""

_TRANSITIONAL = frozenset({DeviceId.BLOCK, DeviceId.NET, DeviceId.SCSI})
"""The types that QEMU also offers to legacy drivers, unless told not to: those know nothing of an IOMMU."""

_RECONNECTING = frozenset({DeviceId.BLOCK, DeviceId.NET})
"""The types whose front-end in QEMU connects again to a back-end that ended. All others refuse to start with
such a chardev, or abort (QEMU 7.2)."""

_MILLISECONDS = (9, 2)
"""The first QEMU that has `reconnect-ms`. From 11.1 on, there is no `reconnect`."""

_MEMORY = "-m 1G -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem"


class Attachable(Protocol):
    """What is attached: the program of a device."""

    @property
    def name(self) -> str:
        """The name of the device on command lines."""

    @property
    def device_id(self) -> DeviceId:
        """The type of the device."""

    for_one_guest: bool
    """Whether all devices of one command line are for the same guest."""

    def qemu_attachment(self, options: argparse.Namespace, chardev: str, properties: str) -> str:
        """Return the QEMU options that attach the device to a chardev; `properties` begin with a comma."""


def qemu_args(program: Attachable, sockets: Sequence[argparse.Namespace]) -> str:
    """Return the QEMU options for a guest with this device, quoted for a shell. Raises UserError.

    `sockets` are those of `for_each_socket()`. Each device is for a guest of its own, on a line of its
    own, unless the program says that all are for one.
    """
    each = [attachment(program, options) for options in sockets]
    if program.for_one_guest:
        return " ".join([_MEMORY, *each])
    return "\n".join(f"{_MEMORY} {one}" for one in each)


def for_each_socket(paths: Sequence[str], options: argparse.Namespace, what: str) -> list[argparse.Namespace]:
    """Return the options of each socket: with its `socket_path`, also that of --connect, and its `number`.

    `paths` are those to listen on. Raises UserError where there is no path, which `what` needs.
    """
    found = paths or [options.connect]
    if found[0] is None:
        raise UserError(f"{what} needs the path of the socket; give --socket-path or --connect")
    return [
        argparse.Namespace(**vars(options) | {"socket_path": path, "number": number})
        for number, path in enumerate(found)
    ]


def model_of(device_id: DeviceId) -> str:
    """Return QEMU's name for the front-end of this type."""
    name = _MODELS.get(device_id)
    return GENERIC_MODEL if name is None else f"vhost-user-{name}-pci"


def own_properties(device_id: DeviceId, name: str, num_queues: int) -> str:
    """Return the properties that QEMU's device of a type needs, with a comma before each."""
    if device_id is DeviceId.BLOCK:  # by default, QEMU asks for a queue for each of the guest's processors
        return f",num-queues={num_queues}"
    if device_id is DeviceId.FS:
        return f",tag={_identifier(name)}"
    return ""


def generic_device(device_id: DeviceId, num_queues: int, config_size: int, without: Container[object]) -> str:
    """Return QEMU's device for any type, with the properties of this one.

    `without` are the features that are not offered.
    """
    # QEMU does not start if it expects a configuration space that the back-end does not have.
    config = f",config_size={config_size}" if config_size and ProtocolFeature.CONFIG not in without else ""
    return f"{GENERIC_MODEL},virtio-id={int(device_id)},num_vqs={num_queues}{config}"


def attachment(program: Attachable, options: argparse.Namespace, properties: str = "") -> str:
    """Return the chardev and the device on it, with `properties` of the latter, quoted for a shell.

    `options` are of `for_each_socket()`. Raises UserError.
    """
    name = f"{_identifier(program.name)}{options.number if program.for_one_guest else 0}"
    if options.iommu:
        legacy = ",disable-legacy=on" if program.device_id in _TRANSITIONAL else ""
        properties += f",iommu_platform=on,ats=on{legacy}"
    chardev = socket_chardev(
        _chardev_properties(program.device_id, options), id=name, path=options.socket_path
    )
    return f"{chardev} {program.qemu_attachment(options, name, properties)}"


def _identifier(name: str) -> str:
    """Return `name` as an id for QEMU: letters, digits and -._ after a letter."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name)
    return plain if plain[:1].isalpha() else f"device{plain}"


def _chardev_properties(device_id: DeviceId, options: argparse.Namespace) -> str:
    """Return how QEMU listens, or connects again, with a comma before it. Raises UserError."""
    if options.connect is not None:
        return ",server=on"
    if device_id not in _RECONNECTING:
        return ""
    return ",reconnect-ms=1000" if _qemu_version(options) >= _MILLISECONDS else ",reconnect=1"


def _qemu_version(options: argparse.Namespace) -> tuple[int, ...]:
    """Return the version of the QEMU that the options are for; without a QEMU, that of a new one."""
    version = ask_version(options.qemu or DEFAULT_PROGRAM)
    if not version and options.qemu is not None:
        raise UserError(
            f"there is no QEMU '{options.qemu}' here to be asked for its version; give another --qemu"
        )
    return tuple(map(int, re.findall(r"\d+", version)[:2])) or _MILLISECONDS
