"""Lines of the host, with a chip that stands in for the kernel's; tests/guest/test_gpio.py has a real one."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import gpiod
import pytest
from gpiod.line import Direction as HostDirection
from gpiod.line import Edge, Value

from protocol.program.command_line import UserError
from protocol.virtio.gpio import Direction, GpioRequestType, IrqStatus, IrqType
from tests.vhost_user.devices.gpio.driver import IRQ, Driver, RefusedError
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.host import CONSUMER, HostChip
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gpiod import LineSettings


class KernelChip:
    """What of a gpiod.Chip is used, with lines that the test drives. Edges come through pipes."""

    path = "/dev/gpiochip9"

    def __init__(self, *names: str | None) -> None:
        self.names = names
        self.levels = [0] * len(names)
        self.requests: dict[int, KernelRequest] = {}
        self.busy: set[int] = set()
        self.consumers: set[str] = set()
        self.outputs = {3}
        """Lines that the hardware has as outputs."""
        self.is_closed = False

    def get_info(self) -> Any:
        return SimpleNamespace(num_lines=len(self.names))

    def get_line_info(self, offset: int) -> Any:
        direction = HostDirection.OUTPUT if offset in self.outputs else HostDirection.INPUT
        return SimpleNamespace(name=self.names[offset], direction=direction)

    def request_lines(self, config: dict[int, LineSettings], consumer: str) -> KernelRequest:
        ((offset, settings),) = config.items()
        if offset in self.busy or offset in self.requests:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.consumers.add(consumer)
        self.requests[offset] = KernelRequest(self, offset, settings)
        return self.requests[offset]

    def change(self, offset: int, level: int) -> None:
        """Have a line change from outside."""
        self.levels[offset] = level
        if (request := self.requests.get(offset)) is not None:
            request.notice(level)

    def close(self) -> None:
        self.is_closed = True


class KernelRequest:
    """What of a gpiod.LineRequest is used."""

    def __init__(self, chip: KernelChip, offset: int, settings: LineSettings) -> None:
        self._chip = chip
        self._offset = offset
        self.fd, self._other_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.reconfigure_lines({offset: settings})

    def reconfigure_lines(self, config: dict[int, LineSettings]) -> None:
        self.settings = config[self._offset]
        if self.settings.direction is HostDirection.OUTPUT:
            self.set_value(self._offset, self.settings.output_value)

    def get_value(self, offset: int) -> Value:
        assert offset == self._offset
        return Value.ACTIVE if self._chip.levels[offset] else Value.INACTIVE

    def set_value(self, offset: int, value: Value) -> None:
        assert (offset, self.settings.direction) == (self._offset, HostDirection.OUTPUT)
        self._chip.levels[offset] = int(value is Value.ACTIVE)

    def notice(self, level: int) -> None:
        """Note an edge, where edges of that kind are wanted."""
        if self.settings.edge_detection in {Edge.BOTH, Edge.RISING if level else Edge.FALLING}:
            os.write(self._other_end, bytes([level]))

    def read_edge_events(self) -> list[Any]:
        kinds = gpiod.EdgeEvent.Type
        event_types = [kinds.RISING_EDGE if level else kinds.FALLING_EDGE for level in os.read(self.fd, 16)]
        return [SimpleNamespace(event_type=kind, Type=kinds) for kind in event_types]

    def release(self) -> None:
        os.close(self.fd)
        os.close(self._other_end)
        del self._chip.requests[self._offset]


def host_chip(kernel: KernelChip, *lines: int) -> HostChip:
    return HostChip(cast("gpiod.Chip", kernel), lines)


@pytest.fixture
def kernel() -> KernelChip:
    return KernelChip("reset", "led", None, "key")


@asynccontextmanager
async def driven(kernel: KernelChip, *lines: int) -> AsyncIterator[Driver]:
    with Gpio(host_chip(kernel, *lines)) as device:
        async with driving(device, plus=IRQ) as front:
            yield await Driver.start(front)
    assert kernel.is_closed
    assert not kernel.requests, "a line was not given back"


def test_names_are_ascii_and_each_there_once() -> None:
    assert host_chip(KernelChip("a", None, "ä", "a", "")).names == ["a", "", "", "", ""]
    assert host_chip(KernelChip("a", "b", "c"), 2, 0).names == ["c", "a"]


def test_line_that_the_chip_has_not() -> None:
    with pytest.raises(UserError, match="/dev/gpiochip9 has no line 2; its lines are 0 to 1"):
        host_chip(KernelChip("a", "b"), 1, 2)


async def test_directions_and_values(kernel: KernelChip) -> None:
    async with driven(kernel, 1, 3) as driver:
        directions = [await driver.ask(GpioRequestType.GET_DIRECTION, line) for line in (0, 1)]
        assert directions == [bytes([Direction.IN]), bytes([Direction.OUT])], "as the hardware has them"
        with pytest.raises(RefusedError):
            await driver.get(0)
        await driver.set(0, 1)
        assert kernel.levels[1] == 0
        await driver.use(0, Direction.OUT)
        assert (kernel.levels[1], await driver.get(0)) == (1, 1)
        await driver.set(0, 0)
        assert (kernel.levels[1], await driver.get(0)) == (0, 0)
        await driver.use(0, Direction.IN)
        kernel.change(1, 1)
        assert await driver.get(0) == 1
        assert kernel.consumers == {CONSUMER}
        await driver.use(0, Direction.NONE)
        assert not kernel.requests
        await driver.use(1, Direction.IN)  # the end of the connection gives it back


async def test_line_that_is_in_use(kernel: KernelChip, caplog: pytest.LogCaptureFixture) -> None:
    kernel.busy.add(3)
    async with driven(kernel) as driver:
        with pytest.raises(RefusedError):
            await driver.use(3, Direction.IN)
        assert "line 3, which is 3 of /dev/gpiochip9: Device or resource busy; something else" in caplog.text
        kernel.busy.clear()
        await driver.use(3, Direction.IN)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(IrqType.EDGE_BOTH, [1, 0, 1, 0]), (IrqType.EDGE_RISING, [1, 1]), (IrqType.EDGE_FALLING, [0, 0])],
)
async def test_edges(kernel: KernelChip, kind: IrqType, expected: list[int]) -> None:
    async with driven(kernel) as driver:
        buffer = await driver.watch(0, kind)
        seen = []
        for level in (1, 0, 1, 0):
            kernel.change(0, level)
            if kind.fires_at(level):
                assert await driver.interrupt(buffer) is IrqStatus.VALID
                seen.append(await driver.get(0))
                buffer = driver.unmask(0)
        assert seen == expected
        await driver.enable(0, IrqType.NONE)
        assert await driver.interrupt(buffer) is IrqStatus.INVALID
        assert kernel.requests[0].settings.edge_detection is Edge.NONE


async def test_level_is_that_of_now_and_not_of_edges_before(kernel: KernelChip) -> None:
    async with driven(kernel) as driver:
        buffer = await driver.watch(0, IrqType.LEVEL_HIGH)
        kernel.change(0, 1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        assert await driver.interrupt(driver.unmask(0)) is IrqStatus.VALID
        kernel.levels[0] = 0  # and nobody has told of the edge yet
        buffer = driver.unmask(0)
        assert await driver.are_held(buffer)
        kernel.change(0, 1)
        kernel.change(0, 0)  # before anybody has looked
        assert await driver.get(0) == 0
        assert await driver.are_held(buffer)
        kernel.change(0, 1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID


async def test_interrupt_of_a_line_whose_direction_is_not_set(kernel: KernelChip) -> None:
    async with driven(kernel) as driver:
        await driver.enable(0, IrqType.EDGE_BOTH)
        buffer = driver.unmask(0)
        kernel.change(0, 1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        await driver.enable(0, IrqType.NONE)
        assert not kernel.requests
