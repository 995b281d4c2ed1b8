"""Requests to an I2C adapter, and the transfers they form (virtio 1.3, section 5.16.6)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from protocol.virtio.i2c import (
    KNOWN_FLAGS,
    MAX_MESSAGE,
    REQUEST_HEADER,
    I2cFeature,
    RequestFlag,
    RequestStatus,
    decode_address,
    decode_ten_bit_address,
)
from protocol.words import plural
from vhost_user.buffers import Readable
from vhost_user.devices.i2c.chips.chip import I2cMessage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

MAX_GROUP = 42
"""Messages in one transfer at most, as in Linux's ioctl I2C_RDWR."""

GROUP_SECONDS = 0.02
"""How long to wait for the rest of a group. Linux's driver makes a whole one available at once, but where
the ring has no room for all of it, the rest never comes."""

_log = logging.getLogger("vhost_user.i2c")


@dataclass(slots=True)
class Request:
    """A request as its driver put it."""

    chain: Chain
    message: I2cMessage | None
    """What is to be done; None where that cannot be done."""
    fail_next: bool = False
    """Whether the next request belongs to the same group."""
    reason: str = ""
    """Why there is nothing to be done, in one line."""


def parse_request(chain: Chain, features: int) -> Request:
    """Take a request apart, where `features` were negotiated. Never fails: see `Request.reason`."""
    readable = Readable(chain.readable_buffers, chain.readable_length)
    header = readable.read(REQUEST_HEADER.size)
    if len(header) < REQUEST_HEADER.size:
        return Request(
            chain, None, reason=f"a header of {plural(len(header), 'byte')}, not {REQUEST_HEADER.size}"
        )
    addr, _, word = REQUEST_HEADER.unpack(header)
    flags = RequestFlag(word)
    room = chain.writable_length - 1
    request = Request(chain, None, RequestFlag.FAIL_NEXT in flags)
    request.reason = (
        _wrong_features(features)
        or _wrong_flags(flags)
        or _wrong_address(addr)
        or _wrong_buffers(readable.remaining, room, is_read=RequestFlag.M_RD in flags)
    )
    if not request.reason:
        address = decode_address(addr) or 0
        request.message = I2cMessage(address, RequestFlag.M_RD in flags, readable.read(), room)
    return request


def write_response(request: Request, status: RequestStatus) -> int:
    """Write what was read and the status, where there is a byte for it; return how many bytes that was.

    All that is writable counts as written, so what failed gives zeroes.
    """
    chain, message = request.chain, request.message
    if not chain.writable_length:
        return 0
    data = b""
    if status is RequestStatus.OK and message is not None and message.read:
        data = message.data
    position = 0
    for buffer in chain.writable_buffers:
        part = data[position : position + len(buffer)]
        buffer[:] = part.ljust(len(buffer), b"\0")
        position += len(buffer)
    chain.writable_buffers[-1][-1] = status
    return chain.writable_length


def completion_order(count: int, done: int) -> list[int]:
    """Return in which order a group's requests are given back, when `done` were done and the next failed.

    That one comes last, and all of them come with one call. For a Linux of 2025 waits for none after it,
    and frees the memory of all: one that came later would be noted in memory that is another's by then.
    """
    numbers = list(range(count))
    return numbers[:done] + numbers[done + 1 :] + numbers[done : done + 1]


def _wrong_features(features: int) -> str:
    if features & I2cFeature.ZERO_LENGTH_REQUEST:
        return ""
    return "the driver did not turn on ZERO_LENGTH_REQUEST, without which its requests have no direction"


def _wrong_flags(flags: RequestFlag) -> str:
    unknown = flags.without(KNOWN_FLAGS)
    return f"unknown flags: {unknown}" if unknown else ""


def _wrong_address(addr: int) -> str:
    ten = decode_ten_bit_address(addr)
    if ten is not None:
        return f"the 10-bit address {ten:#05x}; chips have addresses of 7 bits here"
    return f"{addr:#06x}, which is not an address of 7 bits" if decode_address(addr) is None else ""


def _wrong_buffers(length: int, room: int, *, is_read: bool) -> str:
    if room < 0:
        return "no byte for the status"
    if is_read and length:
        return f"{plural(length, 'byte')} to write in a request that reads"
    if not is_read and room:
        return f"room for {plural(room, 'byte')} in a request that writes"
    if max(length, room) > MAX_MESSAGE:
        return f"a message of {max(length, room)} bytes; {MAX_MESSAGE} are possible"
    return ""


class Transfers:
    """The requests of a queue, gathered into the transfers that they are."""

    def __init__(self, queue: Virtqueue) -> None:
        self._queue = queue

    def __aiter__(self) -> AsyncIterator[list[tuple[Chain, Request]]]:
        return self

    async def __anext__(self) -> list[tuple[Chain, Request]]:
        """Wait for a whole group, or for a part that is not followed by the rest in time.

        At the queue's stop, what there is of a group goes back to the ring.
        """
        group: list[tuple[Chain, Request]] = []
        with trio.CancelScope() as patience:
            while True:
                batch = await self._queue.next_batch(1)  # what is completed is published by flush() alone
                if not batch:
                    for taken, _ in group:
                        taken.put_back()
                    raise StopAsyncIteration
                (chain,) = batch
                request = parse_request(chain, self._queue.features)
                group.append((chain, request))
                if not request.fail_next or self._must_go_on(group):
                    break
                patience.deadline = trio.current_time() + GROUP_SECONDS
        return group

    def _must_go_on(self, group: list[tuple[Chain, Request]]) -> bool:
        """Return whether no more requests can come, or be taken, before some are completed."""
        return len(group) >= MAX_GROUP or self._queue.outstanding >= self._queue.size
