"""Simulated GPIO lines: what may be called, what is told, and that a guest misses no edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.virtio.gpio import Direction, IrqStatus, IrqType
from tests.vhost_user.devices.gpio.driver import Driver, RefusedError, chip_of, driven
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.interrupts import Interrupt
from vhost_user.devices.gpio.simulation import LineState, SimulatedChip, SimulatedLine
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    from vhost_user.simulation.simulation import Simulation

SECONDS = 60


@pytest.fixture
def line() -> SimulatedLine:
    return chip_of("button").lines[0]


async def call(simulation: Simulation, name: str, **arguments: object) -> Any:
    """Make a call as the control socket makes it."""
    return await simulation.find_call(name).make(arguments)


class Guest:
    """A driver that handles interrupts of line 0, and counts what it sees."""

    def __init__(self, driver: Driver) -> None:
        self.seen: list[int] = []
        self._driver = driver
        self._saw = trio.lowlevel.ParkingLot()

    async def until_it_saw(self, count: int) -> None:
        """Wait until it has handled so many interrupts, and no more come."""
        with trio.fail_after(SECONDS):
            while len(self.seen) < count:
                await self._saw.park()
        await trio.testing.wait_all_tasks_blocked()

    async def handle(
        self, kind: IrqType, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Enable the interrupt; look at the line at each one, as Linux does, and unmask it after that."""
        buffer = await self._driver.watch(0, kind)
        task_status.started()
        while True:
            assert await self._driver.interrupt(buffer) is IrqStatus.VALID
            self.seen.append(await self._driver.get(0))
            self._saw.unpark_all()
            buffer = self._driver.unmask(0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (IrqType.EDGE_BOTH, [1, 0] * 1000),
        (IrqType.EDGE_RISING, [1] * 1000),
        (IrqType.EDGE_FALLING, [0] * 1000),
    ],
)
async def test_no_edge_of_a_thousand_pulses_is_lost(
    line: SimulatedLine, kind: IrqType, expected: list[int]
) -> None:
    async with driven(SimulatedChip([line])) as driver, trio.open_nursery() as nursery:
        guest = Guest(driver)
        await nursery.start(guest.handle, kind)
        await line.pulse(1000, seconds=0)
        await guest.until_it_saw(len(expected))
        assert guest.seen == expected
        assert (line.state().delivered, line.state().merged) == (len(expected), 0)
        nursery.cancel_scope.cancel()


async def test_calls_of_several_tasks_do_not_disturb_one_another(line: SimulatedLine) -> None:
    async with driven(SimulatedChip([line])) as driver, trio.open_nursery() as nursery:
        guest = Guest(driver)
        await nursery.start(guest.handle, IrqType.EDGE_BOTH)
        async with trio.open_nursery() as callers:
            for _ in range(10):
                callers.start_soon(line.pulse, 10, 0)
                callers.start_soon(line.press, 0)
        await guest.until_it_saw(220)
        assert guest.seen == [1, 0] * 110
        nursery.cancel_scope.cancel()


async def test_guest_that_handles_nothing_is_given_up_and_can_be_passed_over(
    line: SimulatedLine, autojump_clock: trio.testing.MockClock
) -> None:
    async with driven(SimulatedChip([line])) as driver:
        buffer = await driver.watch(0, IrqType.EDGE_BOTH)
        await line.set(1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        before = trio.current_time()
        with pytest.raises(CallError, match="before within 3 s; does it still run\\? 'set' with wait=false"):
            await line.set(0, within=3)
        assert (line.level, trio.current_time() - before) == (1, 3)
        await line.set(0, wait=False)
        assert line.level == 0


async def test_press_is_active_for_its_time(autojump_clock: trio.testing.MockClock) -> None:
    for active_low in (False, True):
        line = SimulatedLine("button", active_low=active_low)
        assert line.get() == int(active_low)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.press, 2.0)
            await trio.sleep(1.5)
            assert line.get() == int(not active_low)
        assert line.get() == int(active_low)


@pytest.mark.parametrize("initial", [0, 1])
async def test_initial_level_and_toggle(initial: int) -> None:
    line = SimulatedLine("door", initial=1 if initial else 0)
    seen = [line.get()]
    for _ in range(3):
        await line.toggle()
        seen.append(line.get())
    assert seen == [initial, 1 - initial, initial, 1 - initial]


async def test_what_the_guest_does_is_told() -> None:
    chip = chip_of("button", "led")
    with chip.events() as events:
        async with driven(chip) as driver:
            await driver.set(1, 1)
            await driver.use(1, Direction.OUT)
            await driver.set(1, 1)
            await driver.set(1, 0)
            await driver.enable(0, IrqType.LEVEL_LOW)
            await driver.enable(0, IrqType.NONE)
            await driver.set(1, 1)
            await driver.use(1, Direction.NONE)
        told = [await anext(events) for _ in range(8)]
    assert [(event.on, event.name, *event.data.values()) for event in told] == [
        ("led", "direction", "out"),
        ("led", "value", 1),
        ("led", "value", 0),
        ("button", "interrupts", "level-low"),
        ("button", "interrupts", "none"),
        ("led", "value", 1),
        ("led", "direction", "none"),
        ("led", "value", 0),
    ]


async def test_waiting_for_the_guest() -> None:
    chip = chip_of("button", "led")
    button, led = chip.lines
    async with driven(chip) as driver, trio.open_nursery() as nursery:
        nursery.start_soon(led.wait_for, 1)
        nursery.start_soon(button.wait_for_interrupts)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        await driver.set(1, 1)
        await driver.use(1, Direction.OUT)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await driver.watch(0, IrqType.EDGE_BOTH)


async def test_waiting_is_given_up(line: SimulatedLine, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(
        CallError, match=r"the line has not got to 1 within 10 s; 'state' tells who drives it$"
    ):
        await line.wait_for(1)
    with pytest.raises(
        CallError, match="the guest has enabled no interrupt of the line within 2 s; is its driver"
    ):
        await line.wait_for_interrupts(2.0)


async def test_line_that_the_guest_drives_cannot_be_driven_from_outside() -> None:
    chip = chip_of("led")
    async with driven(chip) as driver:
        await driver.use(0, Direction.OUT)
        for name in ("toggle", "press", "pulse"):
            with pytest.raises(CallError, match="the guest drives this line"):
                await call(chip.lines[0], name)
        with pytest.raises(CallError, match="the guest drives this line"):
            await chip.lines[0].set(1)
        assert chip.lines[0].get() == 0


async def test_calls_over_json() -> None:
    chip = SimulatedChip([SimulatedLine("button"), SimulatedLine()])
    assert set(chip.parts) == {"button", "1"}
    button = chip.find("button")
    await call(button, "set", value=1, wait=False)
    assert await call(button, "get") == 1
    free = LineState("none", 0, "none", 0, 0)
    assert await call(chip, "state") == {"button": LineState("none", 1, "none", 0, 0), "1": free}
    wrong: dict[str, dict[str, object]] = {
        "set": {"value": 2},
        "press": {"seconds": -1.0},
        "pulse": {"count": 0},
        "wait_for": {"value": 1, "within": float("nan")},
        "toggle": {"within": 3601},
    }
    for name, arguments in wrong.items():
        with pytest.raises(CallError):
            await call(button, name, **arguments)
    with pytest.raises(CallError, match="1000001 pulses: give a number from 1 to 1000000"):
        await call(button, "pulse", count=1_000_001)
    assert await call(button, "get") == 1


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (("a", "a"), "'a' cannot be the name of another part"),
        (("1", ""), "'1' cannot be the name of another part"),
        (("a/b",), "'a/b' cannot be the name of a line: give printable ASCII without a slash"),
        (("ä",), "printable ASCII"),
        (("a\n",), "printable ASCII"),
    ],
)
def test_names_that_cannot_be(names: tuple[str, ...], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        chip_of(*names)


LEVELS = st.sampled_from([0, 1])
STEPS = st.one_of(
    st.tuples(st.just("outside"), LEVELS),
    st.tuples(st.just("enable"), st.sampled_from(IrqType)),
    st.tuples(st.just("unmask"), st.just(0)),
)


class Model:
    """When an interrupt is delivered, in the specification's words: enabled, unmasked, latched or active."""

    def __init__(self) -> None:
        self.kind = IrqType.NONE
        self.level = 0
        self.unmasked = self.latched = False
        self.returned: list[IrqStatus] = []

    def step(self, name: str, value: int) -> None:
        if name == "outside":
            edge = {1: IrqType.EDGE_RISING, 0: IrqType.EDGE_FALLING}[value]
            if value != self.level and edge & self.kind & IrqType.EDGE_BOTH:
                self.latched = True
            self.level = value
        elif name == "enable":
            if value == IrqType.NONE and self.unmasked:
                self.unmasked = False
                self.returned.append(IrqStatus.INVALID)
            self.latched = self.latched and self.kind == value
            self.kind = IrqType(value)
        elif self.kind is IrqType.NONE or self.unmasked:
            self.returned.append(IrqStatus.INVALID)
        else:
            self.unmasked = True
        active = {IrqType.LEVEL_HIGH: 1, IrqType.LEVEL_LOW: 0}.get(self.kind) == self.level
        if self.unmasked and (self.latched or active):
            self.unmasked = self.latched = False
            self.returned.append(IrqStatus.VALID)


class Buffer:
    """What an interrupt takes and gives back: as much of a chain as it uses."""

    def __init__(self, returned: list[IrqStatus]) -> None:
        self._returned = returned
        self.writable = self

    def write(self, data: bytes) -> None:
        self._returned.append(IrqStatus(data[0]))

    def complete(self) -> None:
        pass


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=500)
def test_interrupts_are_what_the_specification_says(steps: list[tuple[str, int]]) -> None:
    model, interrupt, returned, level = Model(), Interrupt(), list[IrqStatus](), 0
    for name, value in steps:
        model.step(name, value)
        if name == "outside":
            if value != level:
                interrupt.signal(value)
            level = value
        elif name == "unmask":
            interrupt.unmask(Buffer(returned))  # type: ignore[arg-type]
        elif value == IrqType.NONE:
            interrupt.disable()
        else:
            interrupt.enable(IrqType(value), level)
        assert returned == model.returned
    assert interrupt.delivered == returned.count(IrqStatus.VALID)


async def test_device_offers_what_is_simulated() -> None:
    chip = chip_of("button")
    assert Gpio(chip).simulation is chip
    async with driven(chip) as driver:
        with pytest.raises(RefusedError):
            await driver.get(0)
