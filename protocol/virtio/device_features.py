"""The names of the feature bits of each device type."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from protocol.virtio.blk import BlkFeature
from protocol.virtio.console import ConsoleFeature
from protocol.virtio.gpio import GpioFeature
from protocol.virtio.i2c import I2cFeature
from protocol.virtio.ids import DeviceId
from protocol.virtio.net import NetFeature
from protocol.virtio.vsock import VsockFeature

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protocol.virtio.bits import Bits

DEVICE_FEATURES: Mapping[DeviceId, type[Bits]] = MappingProxyType(
    {
        DeviceId.BLOCK: BlkFeature,
        DeviceId.CONSOLE: ConsoleFeature,
        DeviceId.GPIO: GpioFeature,
        DeviceId.I2C_ADAPTER: I2cFeature,
        DeviceId.NET: NetFeature,
        DeviceId.VSOCK: VsockFeature,
    }
)
"""Bits 0 to 23 and 50 to 127 of a device type. Types without bits, such as RNG and INPUT, are absent."""

_SHORT = {DeviceId.BLOCK: "BLK", DeviceId.I2C_ADAPTER: "I2C"}


def short_name(device: DeviceId) -> str:
    """Return the type's name in the names of its features: NET in VIRTIO_NET_F_MAC."""
    return _SHORT.get(device, device.name)
