"""examples/button_and_led.py as a program, with a driver in the guest's place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from protocol.virtio.gpio import Direction, IrqStatus, IrqType
from tests.rig.programs.backend import until_printed
from tests.rig.scenarios.gpio import SECONDS, running_example
from tests.vhost_user.devices.gpio.driver import IRQ, Driver
from vhost_user.frontend import connect

if TYPE_CHECKING:
    from pathlib import Path

BUTTON, LED = 0, 1


async def test_enter_presses_the_button_and_the_led_is_told(directory: Path) -> None:
    async with running_example(directory) as (program, keyboard):
        async with connect(directory / "example.sock", wait_for_backend=SECONDS) as front:
            await front.negotiate(plus=IRQ)
            driver = await Driver.start(front)
            buffer = await driver.watch(BUTTON, IrqType.EDGE_BOTH)
            os.write(keyboard, b"\n\n")
            for level in (1, 0, 1, 0):
                assert await driver.interrupt(buffer) is IrqStatus.VALID
                assert await driver.get(BUTTON) == level
                buffer = driver.unmask(BUTTON)
            await until_printed(program, "the button was pressed\n", 2)
            await driver.use(LED, Direction.OUT)
            for level, word in ((1, "on"), (0, "off"), (1, "on")):
                await driver.set(LED, level)
                await until_printed(program, f"the LED is {word}\n", 1 if word == "off" else level)
        await until_printed(program, "the LED is off\n", 2)  # a guest that is gone drives nothing
