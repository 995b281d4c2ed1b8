"""Handlers: rings. A change to a ring that is served stops it first, and drains it.

One that gets another size, base or byte order is set up again: it starts with SET_VRING_KICK.
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
from vhost_user.backend.handlers.registration import register

if TYPE_CHECKING:
    from vhost_user.backend.state import ConnectionState
    from vhost_user.backend.vring import Vring


_log = logging.getLogger("vhost_user")


async def _to_set_up(state: ConnectionState, index: int) -> Vring:
    vring = state.vring(index)
    if vring.is_running:
        await vring.withdraw()
    return vring


@register(SetVringNum)
async def set_vring_num(state: ConnectionState, request: SetVringNum) -> None:
    """Record the ring's size."""
    vring = await _to_set_up(state, request.index)
    vring.setup.size = request.num
    vring.serve()


@register(SetVringBase)
async def set_vring_base(state: ConnectionState, request: SetVringBase) -> None:
    """Record where the ring goes on."""
    vring = await _to_set_up(state, request.index)
    if vring.setup.base is None and request.base == 0 and Feature.RING_PACKED in state.features:
        _log.warning(
            "queue %d: the front-end lets its packed ring begin at 0, as if it were a split one; if"
            " nothing happens now, it knows no packed rings: withhold the feature (--without RING_PACKED)",
            request.index,
        )
    vring.set_base(request.base)
    vring.serve()


@register(SetVringAddr)
async def set_vring_addr(state: ConnectionState, request: SetVringAddr) -> None:
    """Record where the ring is. A change of its log address only takes effect while it is served."""
    vring = state.vring(request.index)
    if not vring.is_at(request):
        await vring.stop()
    vring.set_address(request)
    vring.serve()


@register(SetVringEndian)
async def set_vring_endian(state: ConnectionState, request: SetVringEndian) -> None:
    """Record the byte order of a legacy driver's ring."""
    vring = await _to_set_up(state, request.index)
    vring.setup.big_endian = request.big
    vring.serve()


@register(SetVringKick)
async def set_vring_kick(state: ConnectionState, request: SetVringKick) -> None:
    """Start the ring. If it is enabled and set up it is served, and looked at once without a kick."""
    vring = state.vring(request.index)
    await vring.stop()
    fd = request.take_fd()
    if fd is None and state.has(ProtocolFeature.INBAND_NOTIFICATIONS):
        vring.start(EventFd.create())
    else:
        vring.start(fd)


@register(VringKick)
async def vring_kick(state: ConnectionState, request: VringKick) -> None:
    """Take a kick; the first one starts a ring that was not started otherwise."""
    vring = state.vring(request.index)
    if not vring.is_started:
        vring.start(EventFd.create())
    elif vring.notifier.kick is not None:
        try:
            vring.notifier.kick.signal()
        except OSError as error:
            raise RefusedError(f"the ring's kick descriptor is not an eventfd: {error.strerror}") from None


@register(SetVringCall)
async def set_vring_call(state: ConnectionState, request: SetVringCall) -> None:
    """Call the driver by this eventfd from now on."""
    vring = state.vring(request.index)
    vring.notifier.set_call(request.take_fd(), is_running=vring.is_running)


@register(SetVringErr)
async def set_vring_err(state: ConnectionState, request: SetVringErr) -> None:
    """Report a broken ring by this eventfd."""
    state.vring(request.index).notifier.set_err(request.take_fd())


@register(SetVringEnable)
async def set_vring_enable(state: ConnectionState, request: SetVringEnable) -> None:
    """Enable or disable the ring; it keeps its place meanwhile."""
    await state.vring(request.index).enable(request.enable)


@register(GetVringBase)
async def get_vring_base(state: ConnectionState, request: GetVringBase) -> VringBase:
    """Stop the ring, once the chains under way are completed, and return where it is.

    With GET_VRING_BASE_INFLIGHT, and without a request of its own for that, chains under way
    may stay in flight.
    """
    suspend = state.has(ProtocolFeature.GET_VRING_BASE_INFLIGHT) and not state.has(
        ProtocolFeature.GET_VRING_BASE_SKIP_DRAIN
    )
    return await _stop(state, request.index, suspend=suspend)


@register(GetVringBaseSkipDrain)
async def get_vring_base_skip_drain(state: ConnectionState, request: GetVringBaseSkipDrain) -> VringBase:
    """Stop the ring at once, leave chains under way in flight, and return where it is."""
    return await _stop(state, request.index, suspend=True)


async def _stop(state: ConnectionState, index: int, *, suspend: bool) -> VringBase:
    vring = state.vring(index)
    await vring.withdraw(0 if suspend and vring.notes_in_flight else None)
    vring.notifier.set_kick(None)
    return VringBase(index, vring.base)
