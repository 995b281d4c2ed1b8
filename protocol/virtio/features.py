"""Features and status of all virtio devices (virtio 1.3, sections 2.1 and 6)."""

from __future__ import annotations

from protocol.virtio.bits import Bits


class Feature(Bits):
    """Bits 24 and up of the feature word; bits 0 to 23 and 50 to 127 are the device type's own."""

    NONE = 0
    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    """vhost: log each write to guest memory. Never offered to a driver."""
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    """vhost-user: there are protocol features to negotiate. Never offered to a driver."""
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41


class DeviceStatus(Bits):
    """The steps of a driver in setting its device up."""

    RESET = 0
    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128
