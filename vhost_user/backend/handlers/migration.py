"""Handlers: what is in flight, and the device's own state, for those who come after us."""

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
from vhost_user.backend.handlers.registration import handles
from vhost_user.memory.inflight_file import InflightBuffer, create_file

if TYPE_CHECKING:
    from vhost_user.backend.state import Backend


@handles(GetInflightFd)
async def get_inflight_fd(backend: Backend, request: GetInflightFd) -> Inflight:
    """Return a new buffer; it is in use once the front-end has given it back.

    The front-end gets back the queue size that it asked for, but a ring of any size will do.
    """
    queues, size = request.num_queues, request.queue_size
    if not 1 <= queues <= len(backend.vrings) or not 1 <= size <= MAX_SIZE:
        raise RefusedError(
            f"an in-flight buffer for {plural(queues, 'queue')} of {size}; there are {len(backend.vrings)}"
        )
    fd, length = create_file(queues)
    return Inflight(length, 0, queues, size, fds=(fd,))


@handles(SetInflightFd)
async def set_inflight_fd(backend: Backend, request: SetInflightFd) -> None:
    """Note in this buffer what is in flight, beginning with what is in it."""
    await backend.stop_vrings()
    backend.inflight = InflightBuffer.adopt(request)
    for vring in backend.vrings:
        vring.trust_inflight()
        vring.start()


@handles(SetDeviceStateFd)
async def set_device_state_fd(backend: Backend, request: SetDeviceStateFd) -> TransferChannel:
    """Begin to save or load the device's state over the front-end's own pipe."""
    if any(vring.is_running for vring in backend.vrings):
        raise RefusedError("the device's state is transferred only while all its queues are stopped")
    (fd,) = request.take_fds()
    backend.transfer = StateTransfer(backend.device, request.direction, fd)
    backend.nursery.start_soon(backend.transfer.run, name="state transfer")
    return TransferChannel()


@handles(CheckDeviceState)
async def check_device_state(backend: Backend, request: CheckDeviceState) -> None:
    """Say whether all of the state was transferred."""
    if backend.transfer is None:
        raise RefusedError("no state was transferred")
    await backend.transfer.result()
