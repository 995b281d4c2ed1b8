"""Keyboards, pointers and touch screens."""

from vhost_user.devices.input.device import Input
from vhost_user.devices.input.simulation import Keyboard

__all__ = ["Input", "Keyboard"]
