"""An I2C adapter's driver, as Linux's does it: a transfer is a group of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from protocol.virtio.i2c import REQUEST_HEADER, RequestFlag, RequestStatus, encode_address

if TYPE_CHECKING:
    from vhost_user.frontend import DriverQueue
    from vhost_user.frontend.queue import Request

OK, ERR = bytes([RequestStatus.OK]), bytes([RequestStatus.ERR])


class Write(NamedTuple):
    """A message that writes."""

    address: int
    data: bytes = b""


class Read(NamedTuple):
    """A message that reads."""

    address: int
    size: int = 0


def header(address: int, flags: int = 0) -> bytes:
    return REQUEST_HEADER.pack(encode_address(address), 0, flags)


def parts(message: Write | Read, *, last: bool = True) -> list[bytes | int]:
    """Return the buffers of a request."""
    flags = RequestFlag.NONE if last else RequestFlag.FAIL_NEXT
    if isinstance(message, Write):
        return [header(message.address, flags), *([message.data] if message.data else []), 1]
    return [header(message.address, flags | RequestFlag.M_RD), *([message.size] if message.size else []), 1]


def submit(queue: DriverQueue, *messages: Write | Read, ends: bool = True) -> list[Request]:
    """Make a group available, or the beginning of one that does not end with it."""
    last = len(messages) - 1 if ends else None
    requests = [
        queue.submit(*parts(message, last=number == last), publish=False)
        for number, message in enumerate(messages)
    ]
    queue.publish()
    return requests


async def transfer(queue: DriverQueue, *messages: Write | Read, ends: bool = True) -> list[bytes | None]:
    """Do a transfer; return for each message what was read, None where it failed."""
    return [result(await queue.wait(request)) for request in submit(queue, *messages, ends=ends)]


def result(answer: bytes) -> bytes | None:
    """Return what was read, None for a request that failed, as an answer says it."""
    data, status = answer[:-1], answer[-1:]
    assert status in {OK, ERR}, answer
    if status == ERR:
        assert not any(data), "a request that failed gives bytes"
        return None
    return data
