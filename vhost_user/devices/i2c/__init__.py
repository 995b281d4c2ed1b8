"""An I2C bus, with simulated chips and with chips of the host."""

from vhost_user.devices.i2c.buses import Bus
from vhost_user.devices.i2c.chips.at24 import At24
from vhost_user.devices.i2c.chips.chip import I2cChip, I2cMessage, NackError, Register, RegisterChip
from vhost_user.devices.i2c.chips.lm75 import Lm75
from vhost_user.devices.i2c.device import I2c

__all__ = ["At24", "Bus", "I2c", "I2cChip", "I2cMessage", "Lm75", "NackError", "Register", "RegisterChip"]
