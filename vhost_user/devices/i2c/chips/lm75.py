"""Lm75: the temperature sensor of that name, simulated (Linux's driver: lm75)."""

from __future__ import annotations

from typing import ClassVar

from vhost_user.devices.i2c.chips.chip import Register, RegisterChip
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import call

COLDEST, HOTTEST = -55.0, 125.0
"""Degrees Celsius that the chip measures."""

_TEMPERATURE, _CONFIGURATION, _HYSTERESIS, _OVERTEMPERATURE = range(4)
_SHUTDOWN = 0x01
_STEP_SHIFT = 7
"""A temperature is nine bits, in steps of half a degree, at the top of a register of 16."""
_NINE_BITS = 0xFF80


class Lm75(RegisterChip):
    """A temperature sensor, with the registers of an LM75.

    Its output for overtemperature works as a comparator: the event "alarm" comes with active=true once
    the temperature is above the limit, with active=false once it is below the hysteresis.
    """

    registers: ClassVar = {
        _TEMPERATURE: Register(size=2, mask=0),
        _CONFIGURATION: Register(mask=0x1F),
        _HYSTERESIS: Register(75 << 8, size=2, mask=_NINE_BITS),
        _OVERTEMPERATURE: Register(80 << 8, size=2, mask=_NINE_BITS),
    }
    auto_increment = False

    def __init__(self, temperature: float = 25.0) -> None:
        """Begin with a `temperature` in degrees Celsius. Raises ValueError where it cannot be measured."""
        super().__init__()
        self._temperature = 0.0
        self._alarm = False
        self.set_temperature(temperature)

    @call
    def get_temperature(self) -> float:
        """Return the temperature in degrees Celsius, as it was set."""
        return self._temperature

    @call
    def set_temperature(self, celsius: float) -> None:
        """Set the temperature to `celsius` degrees; the guest reads the nearest half degree."""
        if not COLDEST <= celsius <= HOTTEST:
            raise CallError(f"{celsius} degrees cannot be measured; give {COLDEST} to {HOTTEST}")
        self._temperature = celsius
        self._measure()

    @call
    def get_alarm(self) -> bool:
        """Return whether the output for overtemperature is active."""
        return self._alarm

    def register_written(self, register: int, value: int) -> None:
        """Measure with the new limits, unless the chip is shut down now."""
        self._measure()

    def _measure(self) -> None:
        if self.get_register(_CONFIGURATION) & _SHUTDOWN:
            return
        steps = round(self._temperature * 2)
        self.set_register(_TEMPERATURE, steps << _STEP_SHIFT & 0xFFFF)
        limit, hysteresis = (self._degrees(register) for register in (_OVERTEMPERATURE, _HYSTERESIS))
        measured = steps / 2
        active = measured > limit or (self._alarm and measured >= hysteresis)
        if active != self._alarm:
            self._alarm = active
            self.emit("alarm", active=active)

    def _degrees(self, register: int) -> float:
        value = self.get_register(register)
        return (value - (value >> 15 << 16)) / 256
