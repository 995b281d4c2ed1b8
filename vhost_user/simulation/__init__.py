"""Simulations behind devices, and the control socket by which other programs change them.

::

    async with vhost_user.simulation.connect("/tmp/i2c.control") as control:
        await control.call("set_temperature", on="0x48", celsius=30.0)
"""

from vhost_user.simulation.calls import CallError
from vhost_user.simulation.control_client import ControlClient, ControlError, connect
from vhost_user.simulation.simulation import Event, Simulation, call

__all__ = ["CallError", "ControlClient", "ControlError", "Event", "Simulation", "call", "connect"]
