"""What a front-end asks for on behalf of a migration: the dirty log, and the device's own state."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from protocol.fds import OwnedFd
from protocol.vhost_user import (
    CheckDeviceState,
    SetDeviceStateFd,
    SetFeatures,
    SetLogBase,
    TransferChannel,
    TransferDirection,
)
from protocol.virtio.features import Feature
from vhost_user.frontend import vrings
from vhost_user.frontend.dirty_pages import DirtyPages

if TYPE_CHECKING:
    from vhost_user.frontend.frontend import Frontend


async def start_log(front: Frontend) -> DirtyPages:
    """Have all writes to guest memory noted; return where. The caller closes it."""
    pages = DirtyPages(max(region.end for region in front.memory.regions))
    try:
        await front.ask(SetLogBase(pages.size, 0, fds=(pages.fd.dup(),)))
        await set_log_features(front, on=True)
    except BaseException:
        pages.close()
        raise
    return pages


async def set_log_features(front: Frontend, *, on: bool) -> None:
    """Turn logging on or off, while queues run."""
    features = front.features.without(Feature.LOG_ALL)
    await front.ask(SetFeatures(features | Feature.LOG_ALL if on else features))
    for queue in front.queues.values():
        await vrings.tell_addresses(front, queue, log=on)


async def save_state(front: Frontend) -> bytes:
    """Return the device's own state; all queues must be stopped."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    stream = await _transfer(front, TransferDirection.SAVE, OwnedFd(ours), OwnedFd(theirs))
    async with stream:
        state = b"".join([part async for part in stream])
    await front.ask(CheckDeviceState())
    return state


async def load_state(front: Frontend, state: bytes) -> None:
    """Give a device the state that `save_state()` returned."""
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    stream = await _transfer(front, TransferDirection.LOAD, OwnedFd(ours), OwnedFd(theirs))
    async with stream:
        await stream.send_all(state)
    await front.ask(CheckDeviceState())


async def _transfer(
    front: Frontend, direction: TransferDirection, ours: OwnedFd, theirs: OwnedFd
) -> trio.lowlevel.FdStream:
    """Return the channel: our end of the one that is offered, or what the back-end has instead."""
    with ours:
        reply = await front.ask(SetDeviceStateFd(direction, fds=(theirs,)))
        assert isinstance(reply, TransferChannel)
        other = reply.take_fd()
        return trio.lowlevel.FdStream((ours if other is None else other).detach())
