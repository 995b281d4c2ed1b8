"""PCI numbers that QEMU's virtual devices share."""

PCI_VENDOR_ID_REDHAT_QUMRANET = 0x1AF4
"""The vendor of every virtio device and of ivshmem."""
