"""Handlers: features, ownership, status, configuration space."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from protocol.io import FdStream
from protocol.vhost_user import (
    Config,
    Features,
    GetConfig,
    GetFeatures,
    GetProtocolFeatures,
    GetQueueNum,
    GetStatus,
    ProtocolFeatures,
    ResetDevice,
    ResetOwner,
    SetBackendReqFd,
    SetConfig,
    SetFeatures,
    SetOwner,
    SetProtocolFeatures,
    SetStatus,
    Status,
)
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from vhost_user.backend.handlers.registration import handles

if TYPE_CHECKING:
    from vhost_user.backend.state import Backend


@handles(GetFeatures)
async def get_features(backend: Backend, request: GetFeatures) -> Features:
    """Say what is offered."""
    return Features(backend.session.negotiation.offered)


@handles(SetFeatures)
async def set_features(backend: Backend, request: SetFeatures) -> None:
    """Note the features, which the session has accepted, in rings, memory and device."""
    backend.memory.use_iotlb(Feature.ACCESS_PLATFORM in request.features)
    backend.use_log()
    backend.device.negotiated(request.features)
    if Feature.PROTOCOL_FEATURES not in request.features:
        for vring in backend.vrings:
            await vring.enable(True)


@handles(GetProtocolFeatures)
async def get_protocol_features(backend: Backend, request: GetProtocolFeatures) -> ProtocolFeatures:
    """Say what is offered."""
    return ProtocolFeatures(backend.session.negotiation.offered_protocol)


@handles(SetProtocolFeatures)
async def set_protocol_features(backend: Backend, request: SetProtocolFeatures) -> None:
    """Do nothing: the session has noted them."""


@handles(SetOwner)
async def set_owner(backend: Backend, request: SetOwner) -> None:
    """Do nothing: a connection has one owner."""


@handles(ResetOwner)
async def reset_owner(backend: Backend, request: ResetOwner) -> None:
    """Disable all rings, and keep everything else."""
    for vring in backend.vrings:
        vring.setup.enabled = False
    await backend.stop_vrings()


@handles(ResetDevice)
async def reset_device(backend: Backend, request: ResetDevice) -> None:
    """Disable all rings and forget what the driver has changed in the device."""
    for vring in backend.vrings:
        vring.setup.enabled = vring.setup.started = False
    await backend.stop_vrings()
    backend.device.reset()


@handles(SetStatus)
async def set_status(backend: Backend, request: SetStatus) -> None:
    """Note the status. QEMU sets 0 also where it only pauses the device: nothing is forgotten."""
    backend.status = request.status


@handles(GetStatus)
async def get_status(backend: Backend, request: GetStatus) -> Status:
    """Return the status as it was set."""
    return Status(backend.status)


@handles(GetQueueNum)
async def get_queue_num(backend: Backend, request: GetQueueNum) -> int:
    """Say how many queues the device has."""
    return len(backend.vrings)


@handles(SetBackendReqFd)
async def set_backend_req_fd(backend: Backend, request: SetBackendReqFd) -> None:
    """Make our own requests over this socket."""
    (fd,) = request.take_fds()
    with fd:
        try:
            stream = FdStream(socket.socket(fileno=fd.fileno()))
        except OSError as error:
            raise RefusedError(f"what came is no socket: {error.strerror}") from None
        fd.detach()
    backend.open_channel(stream)


@handles(GetConfig)
async def get_config(backend: Backend, request: GetConfig) -> Config:
    """Return as many bytes as were asked for; beyond the end of the configuration space they are zeros."""
    if backend.channel is not None:
        backend.channel.config_read()
    data = backend.device.read_config(request.offset, request.size)[: request.size]
    return Config(request.offset, data.ljust(request.size, b"\0"), request.flags)


@handles(SetConfig)
async def set_config(backend: Backend, request: SetConfig) -> None:
    """Leave it to the device."""
    backend.device.write_config(request.offset, request.data, request.flags)
