"""Device types of virtio, and the PCI numbers that QEMU's virtual devices share."""

from __future__ import annotations

from enum import IntEnum
from typing import cast

PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1AF4
"""The vendor of all virtio devices and of ivshmem."""

PCI_DEVICE_ID_BASE = 0x1040
"""A device that is not transitional has the PCI device id 0x1040 + its device type (virtio 1.3, 4.1.2.1)."""


LAST_DEVICE_ID = 0xFFFF
"""The largest `virtio-id=` of QEMU's generic device. PCI has ids for types up to 63."""


class DeviceId(IntEnum):
    """Device types (virtio 1.3, section 5), by the names of Linux's headers.

    `DeviceId(63)` is a type without a name here, such as one of your own: its name is TYPE_63. Raises
    ValueError for anything but a number from 1 to LAST_DEVICE_ID.
    """

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    IOMEM = 6
    RPMSG = 7
    SCSI = 8
    NINEP = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    MEMORY_BALLOON = 13
    GPU = 16
    CLOCK = 17
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    SIGNAL_DISTRIBUTION = 21
    PSTORE = 22
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SEC_MOD = 33
    I2C_ADAPTER = 34
    WATCHDOG = 35
    CAN = 36
    DMABUF = 37
    PARAM_SERVER = 38
    AUDIO_POLICY = 39
    BLUETOOTH = 40
    GPIO = 41
    RDMA = 42
    CAMERA = 43
    ISM = 44
    SPI = 45

    @classmethod
    def _missing_(cls, value: object) -> DeviceId | None:
        if type(value) is not int or not 1 <= value <= LAST_DEVICE_ID:
            raise ValueError(f"{value!r} is not a device type; give a number from 1 to {LAST_DEVICE_ID}")
        member = int.__new__(cls, value)
        member._name_ = f"TYPE_{value}"
        member._value_ = value
        # The same object each time, as for types with names; iteration goes over types with names only.
        return cast("DeviceId", cls._value2member_map_.setdefault(value, member))

    @property
    def pci_device_id(self) -> int:
        """The PCI device id of this device type without legacy interface."""
        return PCI_DEVICE_ID_BASE + self

    @property
    def transitional_pci_device_id(self) -> int | None:
        """The PCI device id of a transitional device, None if the type has none."""
        return _TRANSITIONAL.get(self)


_TRANSITIONAL = {
    DeviceId.NET: 0x1000,
    DeviceId.BLOCK: 0x1001,
    DeviceId.BALLOON: 0x1002,
    DeviceId.CONSOLE: 0x1003,
    DeviceId.SCSI: 0x1004,
    DeviceId.RNG: 0x1005,
    DeviceId.NINEP: 0x1009,
}
