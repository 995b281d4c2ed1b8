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
from vhost_user.backend.handlers.registration import register

if TYPE_CHECKING:
    from vhost_user.backend.state import ConnectionState


@register(GetFeatures)
async def get_features(state: ConnectionState, request: GetFeatures) -> Features:
    """Return the offer."""
    return Features(state.session.negotiation.offered)


@register(SetFeatures)
async def set_features(state: ConnectionState, request: SetFeatures) -> None:
    """Apply the features, which the session has accepted, to rings, memory and device."""
    state.memory.use_iotlb(Feature.ACCESS_PLATFORM in request.features)
    state.use_log()
    state.device.negotiated(request.features)
    if Feature.PROTOCOL_FEATURES not in request.features:
        for vring in state.vrings:
            await vring.enable(True)


@register(GetProtocolFeatures)
async def get_protocol_features(state: ConnectionState, request: GetProtocolFeatures) -> ProtocolFeatures:
    """Return the offer."""
    return ProtocolFeatures(state.session.negotiation.offered_protocol)


@register(SetProtocolFeatures)
async def set_protocol_features(state: ConnectionState, request: SetProtocolFeatures) -> None:
    """Do nothing: the session has recorded them."""


@register(SetOwner)
async def set_owner(state: ConnectionState, request: SetOwner) -> None:
    """Do nothing: a connection has one owner."""


@register(ResetOwner)
async def reset_owner(state: ConnectionState, request: ResetOwner) -> None:
    """Disable all rings, and keep everything else."""
    for vring in state.vrings:
        vring.setup.enabled = False
    await state.stop_vrings()


@register(ResetDevice)
async def reset_device(state: ConnectionState, request: ResetDevice) -> None:
    """Disable all rings and reset the device."""
    for vring in state.vrings:
        vring.setup.enabled = False
    await state.stop_vrings()
    for vring in state.vrings:
        await vring.withdraw()
    state.device.reset()


@register(SetStatus)
async def set_status(state: ConnectionState, request: SetStatus) -> None:
    """Record the status. QEMU sets 0 also where it only pauses the device: nothing is forgotten."""
    state.status = request.status


@register(GetStatus)
async def get_status(state: ConnectionState, request: GetStatus) -> Status:
    """Return the status as it was set."""
    return Status(state.status)


@register(GetQueueNum)
async def get_queue_num(state: ConnectionState, request: GetQueueNum) -> int:
    """Return how many queues the device has."""
    return len(state.vrings)


@register(SetBackendReqFd)
async def set_backend_req_fd(state: ConnectionState, request: SetBackendReqFd) -> None:
    """Make our own requests over this socket."""
    (fd,) = request.take_fds()
    with fd:
        try:
            stream = FdStream(socket.socket(fileno=fd.fileno()))
        except OSError as error:
            raise RefusedError(f"the descriptor is not a socket: {error.strerror}") from None
        fd.detach()
    state.open_channel(stream)


@register(GetConfig)
async def get_config(state: ConnectionState, request: GetConfig) -> Config:
    """Return as many bytes as requested; beyond the end of the configuration space they are zeros."""
    if state.channel is not None:
        state.channel.config_read()
    data = state.device.read_config(request.offset, request.size)[: request.size]
    return Config(request.offset, data.ljust(request.size, b"\0"), request.flags)


@register(SetConfig)
async def set_config(state: ConnectionState, request: SetConfig) -> None:
    """Leave it to the device."""
    state.device.write_config(request.offset, request.data, request.flags)
