"""A network card, and what it is plugged into."""

from vhost_user.devices.net.device import Net
from vhost_user.devices.net.ports.impaired import ImpairedPort
from vhost_user.devices.net.ports.impairments import Impairments
from vhost_user.devices.net.ports.port import NetPort, Receiver, WrappedPort
from vhost_user.devices.net.ports.switch import Link, Switch

__all__ = ["ImpairedPort", "Impairments", "Link", "Net", "NetPort", "Receiver", "Switch", "WrappedPort"]
