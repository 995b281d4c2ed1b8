"""Sockets between a guest and its host."""

from vhost_user.devices.vsock.device import Vsock
from vhost_user.devices.vsock.host import UnixSockets
from vhost_user.devices.vsock.ports import PortListener
from vhost_user.devices.vsock.siblings import Siblings

__all__ = ["PortListener", "Siblings", "UnixSockets", "Vsock"]
