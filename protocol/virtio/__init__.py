"""Virtio and PCI: numbers and layouts, without I/O.

Exported is what all devices share; the layouts of a device type are a module, such as `protocol.virtio.blk`.
"""

from protocol.virtio.bits import Bits
from protocol.virtio.features import DeviceStatus, Feature
from protocol.virtio.ids import DeviceId

__all__ = ["Bits", "DeviceId", "DeviceStatus", "Feature"]
