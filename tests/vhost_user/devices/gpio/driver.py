"""A driver of a GPIO device: its requests and its event buffers, over the queues of a test's front-end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from protocol.virtio.features import Feature
from protocol.virtio.gpio import (
    EVENT_QUEUE,
    IRQ_REQUEST,
    REQUEST,
    REQUEST_QUEUE,
    Direction,
    GpioFeature,
    GpioRequestType,
    GpioStatus,
    IrqStatus,
    IrqType,
)
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from protocol.vhost_user import ProtocolFeature
    from vhost_user.frontend import DriverQueue, Frontend
    from vhost_user.frontend.queue import Request

_NO_LINE = IRQ_REQUEST.pack(0xFFFF)

IRQ = Feature(GpioFeature.IRQ)


class RefusedError(Exception):
    """The device answered with VIRTIO_GPIO_STATUS_ERR."""


class Driver:
    """The driver's side of both queues."""

    def __init__(self, front: Frontend, requests: DriverQueue, events: DriverQueue) -> None:
        self.front = front
        self.requests = requests
        self.events = events

    @classmethod
    async def start(cls, front: Frontend) -> Driver:
        """Start the queues."""
        return cls(front, await front.start_queue(REQUEST_QUEUE), await front.start_queue(EVENT_QUEUE))

    async def ask(self, kind: int, line: int = 0, value: int = 0, *, room: int = 2) -> bytes:
        """Make a request; return the response after its status. Raises RefusedError."""
        response = await self.requests.request(REQUEST.pack(kind, line, value), room)
        if response[0] == GpioStatus.ERR:
            assert not any(response[1:])
            raise RefusedError
        assert (response[0], len(response)) == (GpioStatus.OK, room)
        return response[1:]

    async def use(self, line: int, direction: Direction) -> None:
        await self.ask(GpioRequestType.SET_DIRECTION, line, direction)

    async def get(self, line: int) -> int:
        return (await self.ask(GpioRequestType.GET_VALUE, line))[0]

    async def set(self, line: int, value: int) -> None:
        await self.ask(GpioRequestType.SET_VALUE, line, value)

    async def enable(self, line: int, kind: IrqType) -> None:
        await self.ask(GpioRequestType.SET_IRQ_TYPE, line, kind)

    async def watch(self, line: int, kind: IrqType) -> Request:
        """Do what a driver does for an interrupt: input, enabled, unmasked."""
        await self.use(line, Direction.IN)
        await self.enable(line, kind)
        return self.unmask(line)

    def unmask(self, line: int) -> Request:
        """Give a buffer for the interrupt of a line."""
        return self.events.submit(IRQ_REQUEST.pack(line), 1)

    async def interrupt(self, buffer: Request) -> IrqStatus:
        """Wait until a buffer comes back."""
        (status,) = await self.events.wait(buffer)
        return IrqStatus(status)

    async def are_held(self, *buffers: Request) -> bool:
        """Tell whether none of these buffers has come back, once the device has dealt with all of them."""
        assert await self.events.request(_NO_LINE, 1) == bytes([IrqStatus.INVALID])
        return not any(buffer.is_done for buffer in buffers)

    async def masked_again(self, buffer: Request) -> Request:
        """Wait for an interrupt, and unmask the next one of line 0."""
        assert await self.interrupt(buffer) is IrqStatus.VALID
        return self.unmask(0)


@asynccontextmanager
async def driven(
    chip: SimulatedChip, *, plus: Feature = IRQ, protocol: ProtocolFeature | None = None
) -> AsyncIterator[Driver]:
    """Drive a GPIO device with `chip`, with interrupts by default."""
    from vhost_user.testing import driving  # and with it pytest, which tests/guest/host_lines.py has not

    async with driving(Gpio(chip), plus=plus, protocol=protocol) as front:
        yield await Driver.start(front)


def chip_of(*names: str) -> SimulatedChip:
    """Return a simulated chip with lines of these names."""
    return SimulatedChip([SimulatedLine(name) for name in names])
