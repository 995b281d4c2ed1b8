"""GPIO lines."""

from protocol.virtio.gpio import Direction, IrqType
from vhost_user.devices.gpio.chip import Chip, LineError
from vhost_user.devices.gpio.device import Gpio
from vhost_user.devices.gpio.interrupts import Interrupt
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine

__all__ = [
    "Chip",
    "Direction",
    "Gpio",
    "Interrupt",
    "IrqType",
    "LineError",
    "SimulatedChip",
    "SimulatedLine",
]
