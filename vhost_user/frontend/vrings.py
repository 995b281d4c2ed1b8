"""What a front-end tells a back-end of its queues."""

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
    from vhost_user.frontend.frontend import Frontend
    from vhost_user.frontend.queue import DriverQueue


async def start(front: Frontend, queue: DriverQueue, negotiation: Negotiation, *, enable: bool) -> None:
    """Tell everything of a queue, so that it is served from `queue.base` on; in the order QEMU does it."""
    index = queue.index
    call = (queue.call.dup(),) if queue.has_calls else ()
    await front.ask(SetVringCall(index, no_fd=not call, fds=call))
    err = () if ProtocolFeature.INBAND_NOTIFICATIONS in negotiation.protocol_features else (queue.err.dup(),)
    await front.ask(SetVringErr(index, no_fd=not err, fds=err))
    if ProtocolFeature.CROSS_ENDIAN in negotiation.protocol_features:
        await front.ask(SetVringEndian(index, queue.big_endian))
    await front.ask(SetVringNum(index, queue.size))
    await front.ask(SetVringBase(index, queue.base))
    await tell_addresses(front, queue, log=Feature.LOG_ALL in negotiation.features)
    kick = (queue.kick.dup(),) if queue.has_kicks else ()
    await front.ask(SetVringKick(index, no_fd=not kick, fds=kick))
    if Feature.PROTOCOL_FEATURES in negotiation.offered:
        await front.ask(SetVringEnable(index, enable))


async def tell_addresses(front: Frontend, queue: DriverQueue, *, log: bool) -> None:
    """Tell where the parts of a ring are, and whether writes to its used ring are logged."""
    parts = queue.parts
    offset = 0 if Feature.ACCESS_PLATFORM in queue.features else front.memory.user_offset
    await front.ask(
        SetVringAddr(
            queue.index,
            VringAddressFlag.LOG if log else VringAddressFlag.NONE,
            parts.descriptors.address + offset,
            parts.device.address + offset,
            parts.driver.address + offset,
            parts.device.address if log else 0,
        )
    )


async def stop(front: Frontend, queue: DriverQueue) -> int:
    """Have a queue stopped; return and note where it stopped."""
    reply = await front.ask(GetVringBase(queue.index))
    assert isinstance(reply, VringBase)
    queue.base = reply.base
    return reply.base
