"""The devices that there are, by name: ours, and those of other packages' entry points."""

from __future__ import annotations

from importlib.metadata import entry_points

from protocol.program.command_line import UserError
from vhost_user.class_loading import load_class
from vhost_user.device import VirtioDevice

GROUP = "vhost_user.devices"
"""The entry-point group by which other packages add devices: NAME = "MODULE:CLASS"."""

DEVICES = {
    "blk": "vhost_user.devices.blk:Blk",
    "console": "vhost_user.devices.console:Console",
    "gpio": "vhost_user.devices.gpio:Gpio",
    "i2c": "vhost_user.devices.i2c:I2c",
    "input": "vhost_user.devices.input:Input",
    "net": "vhost_user.devices.net:Net",
    "rng": "vhost_user.devices.rng:Rng",
    "vsock": "vhost_user.devices.vsock:Vsock",
}
"""Where our devices are."""


def device_names() -> list[str]:
    """Return the names of all devices that are installed."""
    return sorted({*DEVICES, *entry_points(group=GROUP).names})


def find_device(name: str) -> type[VirtioDevice]:
    """Return the device class that is called `name`, or that is there as MODULE:CLASS. Raises UserError."""
    where = DEVICES.get(name, name)
    if ":" in where:
        return _load(where)
    for entry in entry_points(group=GROUP, name=name):
        return _load(f"{entry.module}:{entry.attr}")
    raise UserError(f"there is no device '{name}'; give one of {', '.join(device_names())}, or MODULE:CLASS")


def _load(where: str) -> type[VirtioDevice]:
    found = load_class(where, "device")
    module_name, _, class_name = where.partition(":")
    if not (isinstance(found, type) and issubclass(found, VirtioDevice)):
        raise UserError(f"{module_name} has no device class {class_name}; one is derived from VirtioDevice")
    if not hasattr(found, "device_id"):
        raise UserError(f"{where} has no device_id; set it to one of vhost_user.DeviceId")
    if found.run_queue is VirtioDevice.run_queue:
        raise UserError(f"{where} has no run_queue(); write that method to serve its queues")
    return found
