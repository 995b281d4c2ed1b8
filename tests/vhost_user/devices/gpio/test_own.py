"""Users' own lines go wrong: the guest gets an error or nothing, and all else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from protocol.virtio.gpio import Direction, GpioRequestType, IrqStatus, IrqType
from tests.vhost_user.devices.gpio.driver import IRQ, Driver, RefusedError
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.chip import LineError
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine
from vhost_user.testing import driving

if TYPE_CHECKING:
    from trio.testing import MockClock

from tests.vhost_user.devices.own_code import Mistake, tracebacks


class OwnChip(SimulatedChip):
    """Two lines, the second of which goes wrong: raises `error`, or returns `returns`."""

    def __init__(self, error: Exception | None = None, returns: object = 0) -> None:
        super().__init__([SimulatedLine("good"), SimulatedLine("bad")])
        self.error = error
        self.returns = returns

    async def value(self, line: int) -> int:
        return await super().value(line) if line == 0 else await self.wrong()

    async def direction(self, line: int) -> Direction:
        return await super().direction(line) if line == 0 else await self.wrong()

    async def watch(self, line: int, kind: IrqType) -> int:
        return await super().watch(line, kind) if line == 0 else await self.wrong()

    async def refresh(self, line: int) -> None:
        if line:
            await self.wrong()

    async def wrong(self) -> Any:
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # anew, as one that is kept keeps its frames
        if self.returns is ...:
            await trio.sleep_forever()
        return self.returns


@pytest.mark.parametrize(
    "error", [Mistake("in value"), ExceptionGroup("of a nursery", [Mistake("in value")])]
)
async def test_line_that_raises_gets_the_guest_an_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(Gpio(OwnChip(error)), plus=IRQ) as front:
        driver = await Driver.start(front)
        for _ in range(20):
            with pytest.raises(RefusedError):
                await driver.get(1)
        await driver.use(0, Direction.IN)
        assert await driver.get(0) == 0
    assert "the chip OwnChip failed: the guest gets an error. This is logged once." in caplog.messages
    assert "Mistake: in value" in caplog.text
    assert len(caplog.records) == 1


async def test_line_error_is_no_failure_in_a_group_either(caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Gpio(OwnChip(ExceptionGroup("", [LineError("what is not")]))), plus=IRQ) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
    assert caplog.messages == ["the guest gets an error for what is not"]


@pytest.mark.parametrize("returns", [2, -1, None, "1", 300, 0.5])
async def test_level_or_direction_that_cannot_be(returns: object, caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Gpio(OwnChip(returns=returns)), plus=IRQ) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
        if returns != 2:  # which is Direction.IN
            with pytest.raises(RefusedError):
                await driver.ask(GpioRequestType.GET_DIRECTION, 1)
        await driver.use(0, Direction.IN)
    assert tracebacks(caplog) >= 1


async def test_line_that_never_answers(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    async with driving(Gpio(OwnChip(returns=...)), plus=IRQ, patience=1000) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
        await driver.use(0, Direction.IN)
    assert "TimeoutError: it has not returned within 10 s, and was cancelled" in caplog.text


async def test_interrupt_whose_line_fails_when_it_is_unmasked(caplog: pytest.LogCaptureFixture) -> None:
    chip = OwnChip(returns=0)
    async with driving(Gpio(chip), plus=IRQ) as front:
        driver = await Driver.start(front)
        await driver.use(1, Direction.IN)
        await driver.enable(1, IrqType.LEVEL_HIGH)
        chip.error = Mistake("in refresh")
        buffer = driver.unmask(1)
        assert await driver.are_held(buffer)
        await chip.lines[1].set(1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
    assert "Mistake: in refresh" in caplog.text


@pytest.mark.parametrize("ends", [True, False])
async def test_chip_whose_run_is_over_keeps_its_lines(ends: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Short(OwnChip):
        async def run(self) -> None:
            if not ends:
                raise Mistake("in run")

        def reset(self) -> None:
            super().reset()
            raise Mistake("in reset")

        def close(self) -> None:
            raise Mistake("in close")

    chip = Short()
    with Gpio(chip) as device:
        async with driving(device, plus=IRQ) as front:
            driver = await Driver.start(front)
            buffer = await driver.watch(0, IrqType.EDGE_RISING)
            await chip.lines[0].set(1)
            assert await driver.interrupt(buffer) is IrqStatus.VALID
    assert ("Mistake: in run" in caplog.text) is not ends
    assert "Mistake: in reset" in caplog.text
    assert "Mistake: in close" in caplog.text
