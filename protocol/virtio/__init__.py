"""Virtio and PCI: numbers and layouts, without I/O.

Exported is what all devices share; the layouts of a device type are a module, such as `protocol.virtio.blk`.
"""

from protocol.virtio.bits import Bits
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from protocol.virtio.status import DeviceStatus

__all__ = ["Bits", "DeviceId", "DeviceStatus", "Feature"]
