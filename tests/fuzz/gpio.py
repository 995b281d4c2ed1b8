"""Any chains to a GPIO device, with lines that change from outside meanwhile.

The first byte says what the driver turned on. Then come steps: a byte says what is done, two how long
the readable and the writable part of a chain are, and the readable part follows.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING

from protocol.virtio.features import Feature
from protocol.virtio.gpio import (
    IRQ_REQUEST,
    REQUEST,
    Direction,
    GpioFeature,
    GpioRequestType,
    GpioStatus,
    IrqStatus,
    IrqType,
)
from tests.fuzz.harness import DefectError
from tests.vhost_user.chains import filled
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio import device as gpio
from vhost_user.devices.gpio.interrupts import put_back_buffers
from vhost_user.devices.gpio.simulation import SimulatedChip, SimulatedLine
from vhost_user.ring.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator


logging.getLogger("vhost_user.gpio").setLevel(logging.ERROR)  # what a guest does wrong is all that is done

gpio.in_time = nullcontext  # type: ignore[assignment, attr-defined]  # there is no clock, and nothing to wait for

NAMES = ("button", "", "led")

REQUEST_STEP, EVENT_STEP, TOGGLE_STEP, PAUSE_STEP, RESET_STEP = range(5)
_STEPS = 5


class _Queue:
    """What chains come from and go back to: notes how."""

    def __init__(self) -> None:
        self.taken: list[Chain] = []

    def take(self, readable: bytes, room: int) -> Chain:
        views = [memoryview(readable)] if readable else [], [memoryview(bytearray(room))] if room else []
        chain = filled(Chain(), *views, self, len(self.taken))
        self.taken.append(chain)
        return chain

    def completed(self, chain: Chain) -> None:
        if chain.written > chain.writable_length:
            raise DefectError(f"{chain.written} bytes are said to be written of {chain.writable_length}")

    def recheck(self) -> None:
        pass


class _World:
    """A device, and what its driver and the outside do to it."""

    def __init__(self, features: int) -> None:
        self.chip = SimulatedChip([SimulatedLine(name) for name in NAMES])
        self.device = Gpio(self.chip)
        self.device.negotiated(Feature(features))
        self.requests, self.events = _Queue(), _Queue()

    def step(self, kind: int, readable: bytes, room: int) -> None:
        if kind == REQUEST_STEP:
            chain = self.requests.take(readable, room)
            _run(self.device.serve_request(chain))
            self._check_response(chain)
        elif kind == EVENT_STEP:
            _run(self.device.take_event(self.events.take(readable, room)))
        elif kind == TOGGLE_STEP:
            line = self.chip.lines[room % len(NAMES)]
            if line.direction is not Direction.OUT:
                line.change(0 if line.get() else 1)
        elif kind == PAUSE_STEP:
            put_back_buffers(self.device.interrupts, len(self.events.taken) - 1)
            self._check_all_are_back()
            self.events = _Queue()
        else:
            self.device.reset()
            self._check_all_are_back()
        self._check_held()

    def _check_response(self, chain: Chain) -> None:
        if not chain.completed:
            raise DefectError("a request was not answered")
        if chain.writable_buffers and chain.writable_buffers[0][0] not in set(GpioStatus):
            raise DefectError(f"the status is {chain.writable_buffers[0][0]}")

    def _check_held(self) -> None:
        held = {id(one.buffer) for one in self.device.interrupts if one.buffer is not None}
        for chain in self.events.taken:
            if (id(chain) in held) == (chain.completed or chain.is_put_back):
                raise DefectError(f"{chain} is neither held nor back, or both")
            if (
                chain.completed
                and chain.writable.written
                and chain.writable_buffers[0][0] not in set(IrqStatus)
            ):
                raise DefectError(f"the status is {chain.writable_buffers[0][0]}")
        for interrupt, line in zip(self.device.interrupts, self.chip.lines, strict=True):
            if interrupt.buffer is not None and interrupt.type is IrqType.NONE:
                raise DefectError("the buffer of an interrupt that is disabled is held")
            if interrupt.type is not IrqType.NONE and line.direction is Direction.OUT:
                raise DefectError("an output interrupts")

    def _check_all_are_back(self) -> None:
        if any(one.buffer is not None for one in self.device.interrupts):
            raise DefectError("a buffer is held that should be back")


def _run(work: Coroutine[None, None, None]) -> None:
    """Run what waits for nothing, as nothing simulated does."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise DefectError("a simulated line waits")


def one_input(data: bytes) -> None:
    """Fail unless each chain comes back once, in its time, with a status."""
    world = _World(data[0] if data else 0)
    rest = data[1:]
    while len(rest) >= 3:
        kind, length, room = rest[:3]
        world.step(kind % _STEPS, rest[3 : 3 + length], room)
        rest = rest[3 + length :]


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield each request, right and wrong, and interrupts of each type with all that ends them."""

    def request(kind: int, line: int = 0, value: int = 0, room: int = 2) -> bytes:
        return bytes([REQUEST_STEP, REQUEST.size, room]) + REQUEST.pack(kind, line, value)

    def event(line: int) -> bytes:
        return bytes([EVENT_STEP, IRQ_REQUEST.size, 1]) + IRQ_REQUEST.pack(line)

    irq = bytes([GpioFeature.IRQ])
    toggle, pause, reset = (bytes([kind, 0, 0]) for kind in (TOGGLE_STEP, PAUSE_STEP, RESET_STEP))
    names = request(GpioRequestType.GET_LINE_NAMES, room=1 + 12)
    output = request(GpioRequestType.SET_VALUE, 2, 1) + request(
        GpioRequestType.SET_DIRECTION, 2, Direction.OUT
    )
    yield "names", irq + names
    yield "output", irq + output + request(GpioRequestType.GET_VALUE, 2)
    yield "input", b"\0" + request(GpioRequestType.SET_DIRECTION, 0, Direction.IN) + request(4)
    for kind in IrqType:
        enable = request(GpioRequestType.SET_IRQ_TYPE, 0, kind)
        yield (
            f"irq_{kind.name.lower()}",
            irq + enable + event(0) + toggle + event(0) + toggle + toggle + event(0),
        )
    enabled = irq + b"".join(
        request(GpioRequestType.SET_IRQ_TYPE, line, IrqType.EDGE_BOTH) for line in range(3)
    )
    enabled += event(0) + event(1) + event(2)
    yield "disabled", enabled + request(GpioRequestType.SET_IRQ_TYPE, 0, 0) + event(0)
    yield "freed", enabled + request(GpioRequestType.SET_DIRECTION, 1, Direction.NONE)
    yield "paused", enabled + toggle + pause + event(0)
    yield "reset", enabled + reset + event(0)
    yield (
        "wrong",
        irq + request(9) + request(2, 3) + request(5, 0, 2) + event(3) + bytes([0, 1, 1, 0, 1, 0, 0]),
    )
