"""The device status field (virtio 1.3, section 2.1)."""

from __future__ import annotations

from protocol.virtio.bits import Bits


class DeviceStatus(Bits):
    """The steps of a driver in setting its device up."""

    RESET = 0
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128
