"""Handlers: what only some types of device are asked for, and what none of ours does."""

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
from vhost_user.backend.handlers.registration import handles

if TYPE_CHECKING:
    from vhost_user.backend.state import Backend


@handles(SendRarp)
async def send_rarp(backend: Backend, request: SendRarp) -> None:
    """Leave it to the device."""
    backend.device.send_rarp(request.mac)


@handles(NetSetMtu)
async def net_set_mtu(backend: Backend, request: NetSetMtu) -> None:
    """Leave it to the device."""
    backend.device.set_mtu(request.mtu)


@handles(CreateCryptoSession)
async def create_crypto_session(backend: Backend, request: CreateCryptoSession) -> CryptoSession:
    """Leave it to the device."""
    return CryptoSession(backend.device.create_crypto_session(request.data))


@handles(CloseCryptoSession)
async def close_crypto_session(backend: Backend, request: CloseCryptoSession) -> None:
    """Leave it to the device."""
    backend.device.close_crypto_session(request.session)


@handles(GpuSetSocket)
async def gpu_set_socket(backend: Backend, request: GpuSetSocket) -> None:
    """Leave it to the device."""
    (fd,) = request.take_fds()
    backend.device.set_gpu_socket(fd)


@handles(GetSharedObject)
async def get_shared_object(backend: Backend, request: GetSharedObject) -> SharedObject:
    """Leave it to the device."""
    return SharedObject(fds=(backend.device.shared_object(request.uuid),))


@handles(GetShmemConfig)
async def get_shmem_config(backend: Backend, request: GetShmemConfig) -> SharedMemory:
    """Say how large the device's shared memory regions are."""
    sizes = backend.device.shared_memory
    return SharedMemory(tuple(sizes.get(region, 0) for region in range(max(sizes, default=-1) + 1)))


@handles(PostcopyAdvise)
async def postcopy_advise(backend: Backend, request: PostcopyAdvise) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")


@handles(PostcopyListen)
async def postcopy_listen(backend: Backend, request: PostcopyListen) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")


@handles(PostcopyEnd)
async def postcopy_end(backend: Backend, request: PostcopyEnd) -> None:
    """Refuse postcopy, which is not offered."""
    raise RefusedError("postcopy migration is not supported")
