"""The table of our devices: a row is a program, a line of `list`, and a file for libvirt."""

from __future__ import annotations

DEVICES = {
    "blk": "vhost_user.devices.blk.options:BlkProgram",
    "console": "vhost_user.devices.console.options:ConsoleProgram",
    "gpio": "vhost_user.devices.gpio.options:GpioProgram",
    "i2c": "vhost_user.devices.i2c.options:I2cProgram",
    "input": "vhost_user.devices.input.options:InputProgram",
    "net": "vhost_user.devices.net.options:NetProgram",
    "rng": "vhost_user.devices.rng:RngProgram",
    "vsock": "vhost_user.devices.vsock.options:VsockProgram",
}
"""The DeviceProgram of each device by its name; vhost-user-NAME runs it."""
