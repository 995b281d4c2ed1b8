"""Handlers: the in-flight buffer and the device's state, for later back-ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.vhost_user import (
    CheckDeviceState,
    GetInflightFd,
    Inflight,
    SetDeviceStateFd,
    SetInflightFd,
    TransferChannel,
)
from protocol.vhost_user.validation import RefusedError
from protocol.virtio.split import MAX_SIZE
from protocol.words import plural
from vhost_user.backend.device_state import StateTransfer
from vhost_user.backend.handlers.registration import register
from vhost_user.memory.inflight_file import InflightBuffer, create_file

if TYPE_CHECKING:
    from vhost_user.backend.state import ConnectionState


@register(GetInflightFd)
async def get_inflight_fd(state: ConnectionState, request: GetInflightFd) -> Inflight:
    """Return a new buffer; it is used once the front-end passes it back.

    The reply has the queue size of the request, but a ring of any size has room in the buffer.
    """
    queues, size = request.num_queues, request.queue_size
    if not 1 <= queues <= len(state.vrings) or not 1 <= size <= MAX_SIZE:
        raise RefusedError(
            f"an in-flight buffer for {plural(queues, 'queue')} of {size}; there are {len(state.vrings)}"
        )
    fd, length = create_file(queues)
    return Inflight(length, 0, queues, size, fds=(fd,))


@register(SetInflightFd)
async def set_inflight_fd(state: ConnectionState, request: SetInflightFd) -> None:
    """Record chains in flight in this buffer, and begin with those that it has."""
    await state.stop_vrings()
    state.inflight.buffer = InflightBuffer.adopt(request)
    for vring in state.vrings:
        vring.keep_inflight()
        vring.serve()


@register(SetDeviceStateFd)
async def set_device_state_fd(state: ConnectionState, request: SetDeviceStateFd) -> TransferChannel:
    """Begin to save or load the device's state over the front-end's own pipe."""
    if any(vring.is_running for vring in state.vrings):
        raise RefusedError("the device's state is transferred only while all its queues are stopped")
    (fd,) = request.take_fds()
    state.transfer = StateTransfer(state.device, request.direction, fd)
    state.nursery.start_soon(state.transfer.run, name="state transfer")
    return TransferChannel()


@register(CheckDeviceState)
async def check_device_state(state: ConnectionState, request: CheckDeviceState) -> None:
    """Say whether all of the state was transferred."""
    if state.transfer is None:
        raise RefusedError("no state was transferred")
    await state.transfer.result()
