"""Handlers: requests for some types of device only, and those that none of ours supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import (
    CloseCryptoSession,
    CreateCryptoSession,
    CryptoSession,
    GetSharedObject,
    GetShmemConfig,
    GpuSetSocket,
    NetSetMtu,
    PostcopyAdvise,
    PostcopyEnd,
    PostcopyListen,
    SendRarp,
    SharedMemory,
    SharedObject,
)
from protocol.vhost_user.validation import RefusedError
from vhost_user.backend.handlers.registration import register
from vhost_user.device.optional_methods import (
    HasCryptoSessions,
    HasSharedObjects,
    SendsRarp,
    TakesGpuSocket,
    TakesMtu,
)

if TYPE_CHECKING:
    from vhost_user.backend.state import ConnectionState


@register(SendRarp)
async def send_rarp(state: ConnectionState, request: SendRarp) -> None:
    """Leave it to the device."""
    if not isinstance(state.device, SendsRarp):
        raise RefusedError("the device sends no RARP")
    state.device.send_rarp(request.mac)


@register(NetSetMtu)
async def net_set_mtu(state: ConnectionState, request: NetSetMtu) -> None:
    """Leave it to the device."""
    if not isinstance(state.device, TakesMtu):
        raise RefusedError("the device has no MTU")
    state.device.set_mtu(request.mtu)


@register(CreateCryptoSession)
async def create_crypto_session(state: ConnectionState, request: CreateCryptoSession) -> CryptoSession:
    """Leave it to the device."""
    if not isinstance(state.device, HasCryptoSessions):
        raise RefusedError("the device has no crypto sessions")
    return CryptoSession(state.device.create_crypto_session(request.data))


@register(CloseCryptoSession)
async def close_crypto_session(state: ConnectionState, request: CloseCryptoSession) -> None:
    """Leave it to the device."""
    if not isinstance(state.device, HasCryptoSessions):
        raise RefusedError("the device has no crypto sessions")
    state.device.close_crypto_session(request.session)


@register(GpuSetSocket)
async def gpu_set_socket(state: ConnectionState, request: GpuSetSocket) -> None:
    """Leave it to the device."""
    (fd,) = request.take_fds()
    if not isinstance(state.device, TakesGpuSocket):
        fd.close()
        raise RefusedError("the device is not a gpu")
    state.device.set_gpu_socket(fd)


@register(GetSharedObject)
async def get_shared_object(state: ConnectionState, request: GetSharedObject) -> SharedObject:
    """Leave it to the device."""
    if not isinstance(state.device, HasSharedObjects):
        raise RefusedError("the device has no shared objects")
    return SharedObject(fds=(state.device.shared_object(request.uuid),))


@register(GetShmemConfig)
async def get_shmem_config(state: ConnectionState, request: GetShmemConfig) -> SharedMemory:
    """Say how large the device's shared memory regions are."""
    sizes = state.device.shared_memory
    return SharedMemory(tuple(sizes.get(region, 0) for region in range(max(sizes, default=-1) + 1)))


@register(PostcopyAdvise)
async def postcopy_advise(state: ConnectionState, request: PostcopyAdvise) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")


@register(PostcopyListen)
async def postcopy_listen(state: ConnectionState, request: PostcopyListen) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")


@register(PostcopyEnd)
async def postcopy_end(state: ConnectionState, request: PostcopyEnd) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")
