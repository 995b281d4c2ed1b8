"""The GPIO device before a driver: requests right and wrong, interrupts of every type, resets."""

from __future__ import annotations

import pytest
import trio.testing

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.features import Feature
from protocol.virtio.gpio import (
    IRQ_REQUEST,
    REQUEST,
    Direction,
    GpioConfig,
    GpioRequestType,
    IrqStatus,
    IrqType,
    decode_names,
)
from tests.vhost_user.devices.gpio.driver import IRQ, Driver, RefusedError, chip_of, driven
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine
from vhost_user.testing import driving

NAMES = ("button", "", "led")
PACKED = IRQ | Feature.RING_PACKED


async def test_configuration_and_names() -> None:
    async with driven(chip_of(*NAMES)) as driver:
        config = GpioConfig.decode(await driver.front.get_config(8))
        assert config == GpioConfig(3, 12)
        names = await driver.ask(GpioRequestType.GET_LINE_NAMES, room=1 + config.gpio_names_size)
        assert decode_names(names, 3) == list(NAMES)


async def test_chip_without_names_has_no_such_request() -> None:
    async with driven(chip_of("", "")) as driver:
        assert GpioConfig.decode(await driver.front.get_config(8)) == GpioConfig(2, 0)
        for room in (1, 2, 3):
            with pytest.raises(RefusedError):
                await driver.ask(GpioRequestType.GET_LINE_NAMES, room=room)


@pytest.mark.parametrize("plus", [IRQ, PACKED])
async def test_input_is_what_is_outside(plus: Feature) -> None:
    chip = SimulatedChip([SimulatedLine("a", initial=1), SimulatedLine("b")])
    async with driven(chip, plus=plus) as driver:
        for line in (0, 1):
            assert await driver.ask(GpioRequestType.GET_DIRECTION, line) == bytes([Direction.NONE])
            await driver.use(line, Direction.IN)
            assert await driver.ask(GpioRequestType.GET_DIRECTION, line) == bytes([Direction.IN])
        assert [await driver.get(0), await driver.get(1)] == [1, 0]
        await chip.lines[1].set(1)
        assert [await driver.get(0), await driver.get(1)] == [1, 1]


async def test_output_has_the_value_that_was_set_before_it_became_one() -> None:
    chip = chip_of("led")
    async with driven(chip) as driver:
        await driver.set(0, 1)
        assert chip.lines[0].level == 0
        await driver.use(0, Direction.OUT)
        assert (chip.lines[0].level, await driver.get(0)) == (1, 1)
        await driver.set(0, 0)
        assert (chip.lines[0].level, await driver.get(0)) == (0, 0)
        await driver.set(0, 1)
        await driver.use(0, Direction.IN)
        assert await driver.get(0) == 0, "an input is driven from outside"
        await driver.use(0, Direction.OUT)
        assert await driver.get(0) == 1


async def test_line_that_is_used_no_more_forgets_its_value_and_its_interrupt() -> None:
    chip = chip_of("led")
    async with driven(chip) as driver:
        await driver.set(0, 1)
        buffer = await driver.watch(0, IrqType.EDGE_BOTH)
        await driver.use(0, Direction.NONE)
        assert await driver.interrupt(buffer) is IrqStatus.INVALID
        with pytest.raises(RefusedError):
            await driver.get(0)
        await driver.use(0, Direction.OUT)
        assert await driver.get(0) == 0


@pytest.mark.parametrize(
    ("kind", "line", "value"),
    [
        (GpioRequestType.GET_DIRECTION, 3, 0),
        (GpioRequestType.SET_DIRECTION, 3, 1),
        (GpioRequestType.GET_VALUE, 0xFFFF, 0),
        (GpioRequestType.SET_VALUE, 3, 1),
        (GpioRequestType.SET_IRQ_TYPE, 3, 1),
        (GpioRequestType.SET_DIRECTION, 0, 3),
        (GpioRequestType.SET_DIRECTION, 0, 1 << 16 | 1),
        (GpioRequestType.SET_VALUE, 0, 2),
        (GpioRequestType.SET_VALUE, 0, 1 << 31),
        (GpioRequestType.SET_IRQ_TYPE, 0, 5),
        (GpioRequestType.SET_IRQ_TYPE, 0, 12),
        (GpioRequestType.GET_VALUE, 0, 0),  # its direction is not set
        (0, 0, 0),
        (7, 0, 0),
        (0xFFFF, 0, 0),
    ],
)
async def test_wrong_request_is_an_error_and_the_next_one_is_served(kind: int, line: int, value: int) -> None:
    async with driven(chip_of(*NAMES)) as driver:
        with pytest.raises(RefusedError):
            await driver.ask(kind, line, value)
        await driver.use(0, Direction.IN)
        assert await driver.get(0) == 0


@pytest.mark.parametrize(
    ("request_", "room", "response"),
    [
        (b"", 2, b"\1\0"),
        (REQUEST.pack(GpioRequestType.GET_DIRECTION, 0, 0)[:7], 2, b"\1\0"),
        (REQUEST.pack(GpioRequestType.GET_DIRECTION, 0, 0) + b"\0", 2, b"\1\0"),
        (REQUEST.pack(GpioRequestType.GET_DIRECTION, 0, 0), 3, b"\1\0"),
        (REQUEST.pack(GpioRequestType.GET_DIRECTION, 0, 0), 1, b"\1"),
        (REQUEST.pack(GpioRequestType.GET_DIRECTION, 0, 0), 0, b""),
        (REQUEST.pack(GpioRequestType.GET_LINE_NAMES, 0, 0), 12, b"\1\0"),
        (REQUEST.pack(GpioRequestType.GET_LINE_NAMES, 0, 0), 14, b"\1\0"),
    ],
)
async def test_buffers_too_short_or_too_long(request_: bytes, room: int, response: bytes) -> None:
    parts = [part for part in (request_, room) if part]
    async with driven(chip_of(*NAMES)) as driver:
        assert await driver.requests.request(*parts) == response
        await driver.use(0, Direction.IN)


async def test_request_in_pieces() -> None:
    request = REQUEST.pack(GpioRequestType.SET_DIRECTION, 2, Direction.OUT)
    async with driven(chip_of(*NAMES)) as driver:
        assert await driver.requests.request(request[:1], request[1:5], request[5:], 1, 1) == b"\0\0"
        assert await driver.ask(GpioRequestType.GET_DIRECTION, 2) == bytes([Direction.OUT])


@pytest.mark.parametrize("plus", [IRQ, PACKED])
@pytest.mark.parametrize(
    ("kind", "rising", "falling"),
    [
        (IrqType.EDGE_RISING, True, False),
        (IrqType.EDGE_FALLING, False, True),
        (IrqType.EDGE_BOTH, True, True),
    ],
)
async def test_edges(plus: Feature, kind: IrqType, *, rising: bool, falling: bool) -> None:
    chip = chip_of("button")
    async with driven(chip, plus=plus) as driver:
        buffer = await driver.watch(0, kind)
        for expected in (rising, falling) * 3:
            assert await driver.are_held(buffer)
            await chip.lines[0].toggle()
            if expected:
                buffer = await driver.masked_again(buffer)
        assert await driver.are_held(buffer)
        assert chip.lines[0].state().delivered == 3 * (rising + falling)


@pytest.mark.parametrize(("kind", "active"), [(IrqType.LEVEL_HIGH, 1), (IrqType.LEVEL_LOW, 0)])
async def test_level_interrupts_again_while_it_is_active(kind: IrqType, active: int) -> None:
    chip = SimulatedChip([SimulatedLine("level", initial=0 if active else 1)])
    line = chip.lines[0]
    async with driven(chip) as driver:
        buffer = await driver.watch(0, kind)
        assert await driver.are_held(buffer)
        await line.set(1 if active else 0)
        for _ in range(5):
            buffer = await driver.masked_again(buffer)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        await line.set(0 if active else 1)
        buffer = driver.unmask(0)
        assert await driver.are_held(buffer)
        await line.set(1 if active else 0)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        await line.set(0 if active else 1)
        await line.set(1 if active else 0, wait=False)
        await line.set(0 if active else 1, wait=False)
        assert await driver.are_held(driver.unmask(0))  # a level is not latched


async def test_level_that_is_active_already_interrupts_once_it_is_unmasked() -> None:
    async with driven(SimulatedChip([SimulatedLine("level", initial=1)])) as driver:
        assert await driver.interrupt(await driver.watch(0, IrqType.LEVEL_HIGH)) is IrqStatus.VALID


async def test_one_edge_is_latched_while_masked_and_others_are_counted() -> None:
    chip = chip_of("button")
    line = chip.lines[0]
    async with driven(chip) as driver:
        await driver.use(0, Direction.IN)
        await line.set(1)
        await line.set(0)  # before it is enabled: not latched
        await driver.enable(0, IrqType.EDGE_RISING)
        for _ in range(5):
            await line.toggle(wait=False)
        assert await driver.interrupt(driver.unmask(0)) is IrqStatus.VALID
        assert await driver.are_held(driver.unmask(0))
        state = line.state()
        assert (state.delivered, state.merged) == (1, 2)


async def test_disabling_returns_the_buffer_and_forgets_what_is_latched() -> None:
    chip = chip_of("button")
    async with driven(chip) as driver:
        buffer = await driver.watch(0, IrqType.EDGE_BOTH)
        await driver.enable(0, IrqType.NONE)
        assert await driver.interrupt(buffer) is IrqStatus.INVALID
        await driver.enable(0, IrqType.EDGE_BOTH)
        await chip.lines[0].set(1, wait=False)
        await driver.enable(0, IrqType.NONE)
        await driver.enable(0, IrqType.EDGE_BOTH)
        buffer = driver.unmask(0)
        assert await driver.are_held(buffer)
        await chip.lines[0].set(0)
        assert await driver.interrupt(buffer) is IrqStatus.VALID


async def test_other_type_without_disabling_takes_the_buffer_over() -> None:
    """As Linux does it at irq_set_irq_type()."""
    chip = chip_of("button")
    async with driven(chip) as driver:
        buffer = await driver.watch(0, IrqType.EDGE_RISING)
        await driver.enable(0, IrqType.EDGE_FALLING)
        await chip.lines[0].set(1)
        assert await driver.are_held(buffer)
        await chip.lines[0].set(0)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
        await chip.lines[0].set(1, wait=False)
        await chip.lines[0].set(0, wait=False)
        await driver.enable(0, IrqType.LEVEL_LOW)
        assert await driver.interrupt(driver.unmask(0)) is IrqStatus.VALID
        await driver.enable(0, IrqType.LEVEL_HIGH)
        buffer = driver.unmask(0)
        assert await driver.are_held(buffer)
        await driver.enable(0, IrqType.LEVEL_LOW)
        assert await driver.interrupt(buffer) is IrqStatus.VALID


async def test_interrupts_of_lines_do_not_mix() -> None:
    chip = chip_of("a", "b", "c")
    async with driven(chip) as driver:
        buffers = [await driver.watch(line, IrqType.EDGE_BOTH) for line in range(3)]
        for line in (2, 0, 1):
            await chip.lines[line].set(1)
            assert await driver.interrupt(buffers[line]) is IrqStatus.VALID
            buffers[line] = driver.unmask(line)
            assert await driver.are_held(*buffers)


@pytest.mark.parametrize(
    "parts",
    [
        (IRQ_REQUEST.pack(3), 1),
        (IRQ_REQUEST.pack(0xFFFF), 1),
        (IRQ_REQUEST.pack(1), 1),  # not enabled
        (b"\0", 1),
        (b"\0\0\0", 1),
        (b"\0\0", 2),
        (1,),
    ],
)
async def test_wrong_event_buffer_comes_back(parts: tuple[bytes | int, ...]) -> None:
    chip = chip_of(*NAMES)
    async with driven(chip) as driver:
        good = await driver.watch(0, IrqType.EDGE_BOTH)
        assert await driver.events.request(*parts) == bytes([IrqStatus.INVALID])
        assert await driver.are_held(good)
        await chip.lines[0].set(1)
        assert await driver.interrupt(good) is IrqStatus.VALID


async def test_event_buffer_without_room_comes_back_empty() -> None:
    async with driven(chip_of(*NAMES)) as driver:
        assert await driver.events.request(IRQ_REQUEST.pack(0)) == b""


async def test_second_buffer_for_a_line_comes_back_and_the_first_one_stays() -> None:
    chip = chip_of("button")
    async with driven(chip) as driver:
        first = await driver.watch(0, IrqType.EDGE_BOTH)
        assert await driver.interrupt(driver.unmask(0)) is IrqStatus.INVALID
        assert await driver.are_held(first)
        await chip.lines[0].set(1)
        assert await driver.interrupt(first) is IrqStatus.VALID


async def test_output_has_no_interrupts() -> None:
    async with driven(chip_of("led")) as driver:
        await driver.use(0, Direction.OUT)
        with pytest.raises(RefusedError):
            await driver.enable(0, IrqType.EDGE_BOTH)
        await driver.enable(0, IrqType.NONE)
        await driver.watch(0, IrqType.EDGE_BOTH)
        with pytest.raises(RefusedError):
            await driver.use(0, Direction.OUT)
        await driver.enable(0, IrqType.NONE)
        await driver.use(0, Direction.OUT)


async def test_line_whose_direction_is_not_set_may_interrupt() -> None:
    """Linux sets none for a driver that has the line as its interrupt only."""
    chip = chip_of("irq")
    async with driven(chip) as driver:
        await driver.enable(0, IrqType.EDGE_BOTH)
        buffer = driver.unmask(0)
        await chip.lines[0].set(1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID


async def test_driver_without_interrupts_has_one_queue_and_cannot_enable_them() -> None:
    async with driving(Gpio(chip_of("button")), features=int(Feature.VERSION_1)) as front:
        requests = await front.start_queue(0)
        driver = Driver(front, requests, requests)
        await driver.use(0, Direction.IN)
        for kind in (IrqType.EDGE_BOTH, IrqType.NONE):
            with pytest.raises(RefusedError):
                await driver.enable(0, kind)
        assert await driver.get(0) == 0


@pytest.mark.parametrize("plus", [IRQ, PACKED])
async def test_paused_machine_goes_on_with_its_lines_and_buffers(plus: Feature) -> None:
    chip = chip_of("a", "b", "c")
    async with driven(chip, plus=plus) as driver:
        a = await driver.watch(0, IrqType.EDGE_BOTH)
        b = await driver.watch(1, IrqType.EDGE_BOTH)
        c = await driver.watch(2, IrqType.EDGE_BOTH)
        await chip.lines[1].set(1)
        assert await driver.interrupt(b) is IrqStatus.VALID
        for queue in (driver.events, driver.requests):
            await driver.front.stop_queue(queue)
        # What was taken before a buffer that is back cannot stay: Linux queues it again.
        assert await driver.interrupt(a) is IrqStatus.INVALID
        assert not c.is_done, "it stays in the ring"
        await chip.lines[0].set(1, wait=False)
        for queue in (driver.events, driver.requests):
            await driver.front.resume_queue(queue)
        assert await driver.are_held(c)
        await chip.lines[2].set(1)
        assert await driver.interrupt(c) is IrqStatus.VALID
        assert await driver.interrupt(driver.unmask(0)) is IrqStatus.VALID, "latched meanwhile"
        assert await driver.get(1) == 1


@pytest.mark.parametrize("plus", [IRQ, PACKED])
@pytest.mark.parametrize("protocol", [None, ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK])
async def test_new_driver_finds_lines_as_nobody_uses_them(
    plus: Feature, protocol: ProtocolFeature | None
) -> None:
    """Also where the front-end cannot say so (no RESET_DEVICE), but its rings begin anew."""
    chip = chip_of("button", "led")
    async with driven(chip, plus=plus, protocol=protocol) as driver:
        await driver.watch(0, IrqType.EDGE_BOTH)
        await driver.set(1, 1)
        await driver.use(1, Direction.OUT)
        await driver.front.reset()
        await driver.front.set_features(driver.front.features)
        new = await Driver.start(driver.front)
        assert await new.ask(GpioRequestType.GET_DIRECTION, 0) == bytes([Direction.NONE])
        assert [line.state().interrupts for line in chip.lines] == ["none", "none"]
        assert await new.interrupt(new.unmask(0)) is IrqStatus.INVALID
        await new.use(1, Direction.OUT)
        assert await new.get(1) == 0


async def test_guest_that_is_gone_drives_nothing_and_wants_nothing() -> None:
    chip = chip_of("button", "led")
    with chip.events() as events:
        async with driven(chip) as driver:
            await driver.watch(0, IrqType.EDGE_BOTH)
            await driver.set(1, 1)
            await driver.use(1, Direction.OUT)
            assert chip.lines[1].get() == 1
        told = [await anext(events) for _ in range(8)]
    assert [(event.name, *event.data.values()) for event in told[4:]] == [
        ("interrupts", "none"),
        ("direction", "none"),
        ("direction", "none"),
        ("value", 0),
    ]
    assert [(line.state().direction, line.get()) for line in chip.lines] == [("none", 0), ("none", 0)]
    with trio.fail_after(60):
        for _ in range(3):
            await chip.lines[0].toggle()  # nobody is waited for


@pytest.mark.parametrize("count", [0, 65536])
def test_device_has_lines_and_not_too_many(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 65535 lines, and not {count}"):
        Gpio(SimulatedChip([SimulatedLine() for _ in range(count)]))
