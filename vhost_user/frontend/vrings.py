"""The requests by which a front-end sets up, moves and stops a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import (
    GetVringBase,
    ProtocolFeature,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringEndian,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VringAddressFlag,
    VringBase,
)
from protocol.virtio.features import Feature

if TYPE_CHECKING:
    from protocol.vhost_user import Negotiation
    from vhost_user.frontend.connection import Ask
    from vhost_user.frontend.queue import DriverQueue


async def start(
    ask: Ask, queue: DriverQueue, negotiation: Negotiation, *, user_offset: int, enable: bool
) -> None:
    """Describe and start a queue, so that it is served from `queue.base` on; in QEMU's order.

    `user_offset` is that of the memory, between a guest address and the front-end's own.
    """
    index = queue.index
    call = (queue.call.dup(),) if queue.has_calls else ()
    await ask(SetVringCall(index, no_fd=not call, fds=call))
    err = () if ProtocolFeature.INBAND_NOTIFICATIONS in negotiation.protocol_features else (queue.err.dup(),)
    await ask(SetVringErr(index, no_fd=not err, fds=err))
    if ProtocolFeature.CROSS_ENDIAN in negotiation.protocol_features:
        await ask(SetVringEndian(index, queue.big_endian))
    await ask(SetVringNum(index, queue.size))
    await ask(SetVringBase(index, queue.base))
    await tell_addresses(ask, queue, user_offset=user_offset, log=Feature.LOG_ALL in negotiation.features)
    kick = (queue.kick.dup(),) if queue.has_kicks else ()
    await ask(SetVringKick(index, no_fd=not kick, fds=kick))
    if Feature.PROTOCOL_FEATURES in negotiation.offered:
        await ask(SetVringEnable(index, enable))


async def tell_addresses(ask: Ask, queue: DriverQueue, *, user_offset: int, log: bool) -> None:
    """Tell where the parts of a ring are, and whether writes to its used ring are logged."""
    parts = queue.parts
    offset = 0 if Feature.ACCESS_PLATFORM in queue.features else user_offset
    await ask(
        SetVringAddr(
            queue.index,
            VringAddressFlag.LOG if log else VringAddressFlag.NONE,
            parts.descriptors.address + offset,
            parts.device.address + offset,
            parts.driver.address + offset,
            parts.device.address if log else 0,
        )
    )


async def stop(ask: Ask, queue: DriverQueue) -> int:
    """Stop a queue; return and record where it stopped."""
    reply = await ask(GetVringBase(queue.index))
    assert isinstance(reply, VringBase)
    queue.base = reply.base
    return reply.base
