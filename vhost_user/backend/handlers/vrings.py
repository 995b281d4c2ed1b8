"""Handlers: rings. Whatever changes a ring that runs stops it first, and drains it.

One that gets another size, base or byte order is being set up anew: it starts with SET_VRING_KICK.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.io import EventFd
from protocol.vhost_user import (
    GetVringBase,
    GetVringBaseSkipDrain,
    ProtocolFeature,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringEndian,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VringBase,
    VringKick,
)
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.features import Feature
from vhost_user.backend.handlers.registration import handles

if TYPE_CHECKING:
    from vhost_user.backend.state import Backend
    from vhost_user.backend.vring import Vring


_log = logging.getLogger("vhost_user")


async def _to_set_up(backend: Backend, index: int) -> Vring:
    vring = backend.vring(index)
    if vring.is_running:
        await vring.stop()
        vring.setup.started = False
    return vring


@handles(SetVringNum)
async def set_vring_num(backend: Backend, request: SetVringNum) -> None:
    """Note the ring's size."""
    vring = await _to_set_up(backend, request.index)
    vring.setup.size = request.num
    vring.start()


@handles(SetVringBase)
async def set_vring_base(backend: Backend, request: SetVringBase) -> None:
    """Note where the ring goes on."""
    vring = await _to_set_up(backend, request.index)
    if vring.setup.base is None and request.base == 0 and Feature.RING_PACKED in backend.features:
        _log.warning(
            "queue %d: the front-end has its packed ring begin at 0, as if it were a split one; if"
            " nothing happens now, it knows no packed rings: withhold the feature (--without RING_PACKED)",
            request.index,
        )
    vring.set_base(request.base)
    vring.start()


@handles(SetVringAddr)
async def set_vring_addr(backend: Backend, request: SetVringAddr) -> None:
    """Note where the ring is. One that runs goes on there, or goes on and is logged, or no longer."""
    vring = backend.vring(request.index)
    if not vring.is_at(request):
        await vring.stop()
    vring.set_address(request)
    vring.start()


@handles(SetVringEndian)
async def set_vring_endian(backend: Backend, request: SetVringEndian) -> None:
    """Note the byte order of a legacy driver's ring."""
    vring = await _to_set_up(backend, request.index)
    vring.setup.big_endian = request.big
    vring.start()


@handles(SetVringKick)
async def set_vring_kick(backend: Backend, request: SetVringKick) -> None:
    """Start the ring, unless it is disabled or not set up. A ring is looked at once without a kick."""
    vring = backend.vring(request.index)
    await vring.stop()
    fd = request.take_fd()
    if fd is None and backend.has(ProtocolFeature.INBAND_NOTIFICATIONS):
        vring.setup.replace("kick", EventFd.create())
    else:
        vring.setup.replace("kick", fd)
    vring.setup.started = True
    vring.start()


@handles(VringKick)
async def vring_kick(backend: Backend, request: VringKick) -> None:
    """Take a kick; the first one starts a ring that was not started otherwise."""
    vring = backend.vring(request.index)
    if not vring.setup.started:
        vring.setup.replace("kick", EventFd.create())
        vring.setup.started = True
        vring.start()
    elif vring.setup.kick is not None:
        try:
            vring.setup.kick.signal()
        except OSError as error:
            raise RefusedError(f"the ring's kick descriptor is no eventfd: {error.strerror}") from None


@handles(SetVringCall)
async def set_vring_call(backend: Backend, request: SetVringCall) -> None:
    """Call the driver by this eventfd from now on."""
    backend.vring(request.index).set_call(request.take_fd())


@handles(SetVringErr)
async def set_vring_err(backend: Backend, request: SetVringErr) -> None:
    """Report a broken ring by this eventfd."""
    backend.vring(request.index).setup.replace("err", request.take_fd())


@handles(SetVringEnable)
async def set_vring_enable(backend: Backend, request: SetVringEnable) -> None:
    """Enable or disable the ring; it keeps its place meanwhile."""
    await backend.vring(request.index).enable(request.enable)


@handles(GetVringBase)
async def get_vring_base(backend: Backend, request: GetVringBase) -> VringBase:
    """Stop the ring, once what is under way is done, and say where it is.

    With GET_VRING_BASE_INFLIGHT, and without a request of its own for that, what is under way may
    stay in flight.
    """
    suspend = backend.has(ProtocolFeature.GET_VRING_BASE_INFLIGHT) and not backend.has(
        ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    )
    return await _stop(backend, request.index, suspend=suspend)


@handles(GetVringBaseSkipDrain)
async def get_vring_base_skip_drain(backend: Backend, request: GetVringBaseSkipDrain) -> VringBase:
    """Stop the ring at once, leave what is under way in flight, and say where it is."""
    return await _stop(backend, request.index, suspend=True)


async def _stop(backend: Backend, index: int, *, suspend: bool) -> VringBase:
    vring = backend.vring(index)
    await vring.stop(0 if suspend and vring.notes_in_flight else None)
    vring.setup.started = False
    vring.setup.replace("kick", None)
    return VringBase(index, vring.base)
