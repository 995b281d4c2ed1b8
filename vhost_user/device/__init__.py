"""A virtio device: its methods and their defaults, and methods that only some types have."""

from vhost_user.device.device import RING_FEATURES, VirtioDevice

__all__ = ["RING_FEATURES", "VirtioDevice"]
