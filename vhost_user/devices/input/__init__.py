"""Keyboards, pointers and touch screens."""

from vhost_user.devices.input.device import EventSource, Input
from vhost_user.devices.input.pointers import Mouse, Size, Tablet
from vhost_user.devices.input.reports import Description, Reports
from vhost_user.devices.input.simulation import Keyboard, SimulatedInput
from vhost_user.devices.input.touch import Touchscreen

__all__ = [
    "Description",
    "EventSource",
    "Input",
    "Keyboard",
    "Mouse",
    "Reports",
    "SimulatedInput",
    "Size",
    "Tablet",
    "Touchscreen",
]
