"""Runs in a guest: a back-end with the guest's GPIO chip, and a driver beside it.

What it prints is what tests/guest/test_gpio.py expects.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.io import FdStream
from protocol.virtio.gpio import Direction, GpioConfig, GpioRequestType, IrqStatus, IrqType, decode_names
from tests.vhost_user.devices.gpio.driver import IRQ, Driver, RefusedError
from vhost_user.backend import serve_connection
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.host import open_chip
from vhost_user.frontend import connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.frontend import Request

PATIENCE_SECONDS = 60
BUTTON, LED = 0, 1


@asynccontextmanager
async def driver_of(device: Gpio) -> AsyncIterator[Driver]:
    """Serve a device, and drive it."""
    ours, theirs = (FdStream(end) for end in socket.socketpair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, device, theirs)
        async with connect(stream=ours, patience=PATIENCE_SECONDS) as front:
            await front.negotiate(plus=IRQ)
            yield await Driver.start(front)


async def main() -> None:
    with Gpio(open_chip("0")) as whole, Gpio(open_chip("gpiochip0", [LED])) as part:
        async with driver_of(whole) as driver, driver_of(part) as other:
            await outputs(driver, other)
            for kind in (IrqType.EDGE_BOTH, IrqType.EDGE_RISING, IrqType.LEVEL_HIGH, IrqType.LEVEL_LOW):
                await interrupts(driver, kind)
    print("done", flush=True)


async def outputs(driver: Driver, other: Driver) -> None:
    """Names, directions and values, and a line that is in use."""
    config = GpioConfig.decode(await driver.front.get_config(8))
    names = await driver.ask(GpioRequestType.GET_LINE_NAMES, room=1 + config.gpio_names_size)
    print(f"{' '.join(decode_names(names, config.ngpio))}, which is {await direction(driver)}", flush=True)
    await driver.set(LED, 1)
    await driver.use(LED, Direction.OUT)
    print(await direction(driver), await driver.get(LED), flush=True)
    try:
        await other.use(0, Direction.IN)
    except RefusedError:
        print("somebody else cannot use it", flush=True)
    await driver.set(LED, 0)
    await driver.use(LED, Direction.NONE)
    await other.use(0, Direction.IN)


async def direction(driver: Driver) -> str:
    """Return the LED's direction."""
    return Direction(*await driver.ask(GpioRequestType.GET_DIRECTION, LED)).name


async def interrupts(driver: Driver, kind: IrqType) -> None:
    """Have the line changed four times; say of each change whether it interrupts."""
    buffer: Request | None = await driver.watch(BUTTON, kind)
    if kind is IrqType.LEVEL_LOW:  # it is low already
        buffer = await handled(driver, kind, buffer)
    for level in (1, 0, 1, 0):
        print(kind.name, "change", flush=True)
        if kind.fires_at(level):
            buffer = await handled(driver, kind, buffer)
        while await driver.get(BUTTON) != level:
            pass
        print(kind.name, level, "interrupts" if kind.fires_at(level) else "does not", flush=True)
        if buffer is None and not kind.fires_at(level):
            buffer = driver.unmask(BUTTON)
    await driver.enable(BUTTON, IrqType.NONE)
    if buffer is not None:
        print(kind.name, "ends", (await driver.interrupt(buffer)).name, flush=True)


async def handled(driver: Driver, kind: IrqType, buffer: Request | None) -> Request | None:
    """Wait for an interrupt; unmask the next one, but by level only once the line has another."""
    assert buffer is not None
    assert await driver.interrupt(buffer) is IrqStatus.VALID
    return None if kind.is_level else driver.unmask(BUTTON)


if __name__ == "__main__":
    trio.run(main)
