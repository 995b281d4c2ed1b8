"""A console: ports, each with a terminal, a socket, a file or a simulation."""

from vhost_user.devices.console.device import Console
from vhost_user.devices.console.simulation import PortSimulation

__all__ = ["Console", "PortSimulation"]
