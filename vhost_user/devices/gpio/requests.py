"""Requests to a GPIO device and their responses (virtio 1.3, section 5.18.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.virtio.gpio import (
    IRQ_REQUEST,
    IRQ_RESPONSE,
    REQUEST,
    RESPONSE,
    Direction,
    GpioRequestType,
    GpioStatus,
    IrqType,
)
from protocol.words import plural

if TYPE_CHECKING:
    from collections.abc import Container

    from vhost_user.ring.chain import Chain

_VALUES: dict[GpioRequestType, Container[int]] = {
    GpioRequestType.SET_DIRECTION: set(Direction),
    GpioRequestType.SET_VALUE: {0, 1},
    GpioRequestType.SET_IRQ_TYPE: set(IrqType),
}
"""Which values a request may have, where it has one."""


class BadRequestError(Exception):
    """A request that breaks the specification; one line that says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its driver put it: well-formed, about a line that there is."""

    type: GpioRequestType
    line: int
    value: int


def parse_request(chain: Chain, lines: int, names_size: int) -> Request:
    """Take a request apart, to a device of so many lines. Raises BadRequestError."""
    number, line, value = REQUEST.unpack(_exactly(chain, REQUEST.size))
    try:
        kind = GpioRequestType(number)
    except ValueError:
        raise BadRequestError(f"a request of type {number}") from None
    if kind is GpioRequestType.GET_LINE_NAMES and not names_size:
        raise BadRequestError("a request for names, of which there are none")
    size = 1 + names_size if kind is GpioRequestType.GET_LINE_NAMES else RESPONSE.size
    if chain.writable.length != size:
        raise BadRequestError(
            f"{kind.name} with {plural(chain.writable.length, 'byte')} for a response of {size}"
        )
    if line >= lines:
        raise BadRequestError(f"{kind.name} of line {line}; there are {lines}")
    if value not in _VALUES.get(kind, {value}):
        raise BadRequestError(f"{kind.name} with the value {value}")
    return Request(kind, line, value)


def write_response(chain: Chain, status: GpioStatus, data: bytes = b"\0") -> None:
    """Write a response, as far as there is room, and give the request back."""
    chain.writable.write(bytes([status]) + data)
    chain.complete()


def parse_event(chain: Chain, lines: int) -> int:
    """Return the line that a buffer of the event queue is for. Raises BadRequestError."""
    (line,) = IRQ_REQUEST.unpack(_exactly(chain, IRQ_REQUEST.size))
    if chain.writable.length != IRQ_RESPONSE.size:
        raise BadRequestError(
            f"an event buffer with {plural(chain.writable.length, 'byte')} for the status, which has 1"
        )
    if line >= lines:
        raise BadRequestError(f"an event buffer for line {line}; there are {lines}")
    return int(line)


def _exactly(chain: Chain, size: int) -> bytes:
    if chain.readable.length != size:
        raise BadRequestError(f"a request of {plural(chain.readable.length, 'byte')}; it has {size}")
    return chain.readable.read(size)
