"""Vhost-user back-ends: virtio devices in Python, outside of QEMU's process."""

from protocol.vhost_user.checks import RefusedError
from protocol.vhost_user.features import ProtocolFeature
from protocol.vhost_user.values import ConfigFlag
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from vhost_user.chain import Chain, ChainError, Readable, Writable
from vhost_user.channel import FrontendError
from vhost_user.device import RING_FEATURES, VirtioDevice
from vhost_user.json_call import CallError
from vhost_user.queue import Virtqueue
from vhost_user.server import serve
from vhost_user.simulation import Simulation, call

__all__ = [
    "RING_FEATURES",
    "CallError",
    "Chain",
    "ChainError",
    "ConfigFlag",
    "DeviceId",
    "Feature",
    "FrontendError",
    "ProtocolFeature",
    "Readable",
    "RefusedError",
    "Simulation",
    "VirtioDevice",
    "Virtqueue",
    "Writable",
    "call",
    "serve",
]
