"""GPIO lines."""

from vhost_user.devices.gpio.device import Gpio
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine

__all__ = ["Gpio", "SimulatedChip", "SimulatedLine"]
