"""Sockets between a guest and its host."""

from vhost_user.devices.vsock.device import Vsock

__all__ = ["Vsock"]
