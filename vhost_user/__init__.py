"""Vhost-user back-ends: virtio devices in Python, outside of QEMU's process."""

from protocol.vhost_user import ConfigFlag, ProtocolFeature, RefusedError
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from vhost_user.backend import serve
from vhost_user.buffers import ChainError, Readable, Writable
from vhost_user.device import RING_FEATURES, VirtioDevice
from vhost_user.device.optional_methods import (
    HasCryptoSessions,
    HasSharedObjects,
    SendsRarp,
    TakesGpuSocket,
    TakesMtu,
)
from vhost_user.device_program import DeviceProgram
from vhost_user.queue import Virtqueue
from vhost_user.ring.chain import Chain
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call
from vhost_user.transport import FrontendError

__all__ = [
    "RING_FEATURES",
    "CallError",
    "Chain",
    "ChainError",
    "ConfigFlag",
    "DeviceId",
    "DeviceProgram",
    "Feature",
    "FrontendError",
    "HasCryptoSessions",
    "HasSharedObjects",
    "ProtocolFeature",
    "Readable",
    "RefusedError",
    "SendsRarp",
    "Simulation",
    "TakesGpuSocket",
    "TakesMtu",
    "VirtioDevice",
    "Virtqueue",
    "Writable",
    "call",
    "serve",
]
