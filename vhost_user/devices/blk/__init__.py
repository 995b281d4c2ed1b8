"""A disk."""

from vhost_user.devices.blk.device import Blk

__all__ = ["Blk"]
