"""The requests of a front-end for a migration: the dirty log, and the device's own state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    CheckDeviceState,
    SetDeviceStateFd,
    SetFeatures,
    SetInflightFd,
    SetLogBase,
    TransferChannel,
    TransferDirection,
)
from protocol.virtio.features import Feature
from vhost_user.frontend import vrings
from vhost_user.frontend.dirty_pages import DirtyPages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.vhost_user import Inflight
    from vhost_user.frontend.connection import Ask
    from vhost_user.frontend.memory import Memory
    from vhost_user.frontend.queue import DriverQueue


async def start_log(ask: Ask, memory: Memory, features: Feature, queues: Iterable[DriverQueue]) -> DirtyPages:
    """Start to log all writes to guest memory; return the log, which the caller closes."""
    pages = DirtyPages(max(region.end for region in memory.regions))
    try:
        await ask(SetLogBase(pages.size, 0, fds=(pages.fd.dup(),)))
        await set_log_features(ask, features, queues, user_offset=memory.user_offset, on=True)
    except BaseException:
        pages.close()
        raise
    return pages


async def set_log_features(
    ask: Ask, features: Feature, queues: Iterable[DriverQueue], *, user_offset: int, on: bool
) -> None:
    """Turn logging on or off, while queues run."""
    features = features.without(Feature.LOG_ALL)
    await ask(SetFeatures(features | Feature.LOG_ALL if on else features))
    for queue in queues:
        await vrings.tell_addresses(ask, queue, user_offset=user_offset, log=on)


async def return_inflight(ask: Ask, buffer: Inflight) -> None:
    """Pass the in-flight buffer, which stays the caller's to close, to a back-end."""
    fds = tuple(fd.dup() for fd in buffer.fds)
    await ask(
        SetInflightFd(buffer.mmap_size, buffer.mmap_offset, buffer.num_queues, buffer.queue_size, fds=fds)
    )


async def save_state(ask: Ask) -> bytes:
    """Return the device's own state; all queues must be stopped."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    stream = await _transfer(ask, TransferDirection.SAVE, OwnedFd(ours), OwnedFd(theirs))
    async with stream:
        state = b"".join([part async for part in stream])
    await ask(CheckDeviceState())
    return state


async def load_state(ask: Ask, state: bytes) -> None:
    """Give a device the state that `save_state()` returned."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    stream = await _transfer(ask, TransferDirection.LOAD, OwnedFd(ours), OwnedFd(theirs))
    async with stream:
        await stream.send_all(state)
    await ask(CheckDeviceState())


async def _transfer(
    ask: Ask, direction: TransferDirection, ours: OwnedFd, theirs: OwnedFd
) -> trio.lowlevel.FdStream:
    """Return the channel: our end of the one that is offered, or what the back-end has instead."""
    with ours:
        reply = await ask(SetDeviceStateFd(direction, fds=(theirs,)))
        assert isinstance(reply, TransferChannel)
        other = reply.take_fd()
        return trio.lowlevel.FdStream((ours if other is None else other).detach())
