"""gpio: lines with names and interrupts (virtio 1.3, section 5.18)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from protocol.program.warnings import OnceLogger
from protocol.virtio.gpio import (
    EVENT_QUEUE,
    MAX_LINES,
    Direction,
    GpioConfig,
    GpioFeature,
    GpioRequestType,
    GpioStatus,
    IrqStatus,
    IrqType,
    encode_names,
)
from protocol.virtio.ids import DeviceId
from vhost_user.device import VirtioDevice
from vhost_user.devices.gpio.chip import LineError
from vhost_user.devices.gpio.interrupts import Interrupt, give_back, put_back_buffers
from vhost_user.devices.gpio.requests import (
    BadRequestError,
    Request,
    parse_event,
    parse_request,
    write_response,
)
from vhost_user.devices.gpio.simulation import SimulatedChip
from vhost_user.own_code.containment import Containment, in_time

if TYPE_CHECKING:
    from protocol.virtio.features import Feature
    from vhost_user.devices.gpio.chip import Chip
    from vhost_user.queue import Virtqueue
    from vhost_user.ring.chain import Chain

_log = logging.getLogger("vhost_user.gpio")


class Gpio(VirtioDevice):
    """GPIO lines for a guest, those of a chip of the host or simulated ones.

    Where a chip of one's own raises anything but LineError, the guest gets an error, and all else goes on.
    """

    device_id = DeviceId.GPIO
    name = "gpio"
    num_queues = 2
    features = GpioFeature.IRQ

    def __init__(self, chip: Chip) -> None:
        """Own `chip` from now on. Raises ValueError for one that has no lines, or more than 65535."""
        count = len(chip.names)
        if not 1 <= count <= MAX_LINES:
            raise ValueError(f"a GPIO device has 1 to {MAX_LINES} lines, and not {count}")
        self._chip = chip
        self._names = encode_names(chip.names)
        self.config = GpioConfig(count, len(self._names)).encode()
        self.interrupts = [Interrupt() for _ in chip.names]
        """The interrupts of all lines."""
        chip.attach(self.interrupts)
        self._has_interrupts = False
        self._once = OnceLogger(_log, 100)
        self._own = Containment(_log)
        self._what = f"the chip {type(chip).__name__}"
        if isinstance(chip, SimulatedChip):
            self.simulation = chip

    def close(self) -> None:
        """Close the chip."""
        with self._own.code(self._what, "it was to be closed"):
            self._chip.close()

    def negotiated(self, features: Feature) -> None:
        """Note whether the driver wants interrupts."""
        self._has_interrupts = bool(features & GpioFeature.IRQ)

    def reset(self) -> None:
        """Disable all interrupts, and use no line."""
        with self._own.code(self._what, "it was to be reset"):
            self._chip.reset()
        for interrupt in self.interrupts:
            interrupt.disable()

    async def run(self) -> None:
        """Run the chip; at the end it is reset."""
        try:
            with self._own.code(self._what, "its run() is over, while the guest has it still"):
                await self._chip.run()
            await trio.sleep_forever()
        finally:
            self.reset()

    async def run_queue(self, queue: Virtqueue) -> None:
        """Serve one of the two queues."""
        if queue.index == EVENT_QUEUE:
            await self._serve_events(queue)
        else:
            await self._serve_requests(queue)

    async def _serve_requests(self, queue: Virtqueue) -> None:
        """Answer one request after the other, also those about different lines."""
        if queue.begins_anew:  # a guest that reboots tells QEMU, which does not tell us
            self.reset()
            if not self._has_interrupts:
                _log.warning(
                    "the guest has no interrupts of its lines: QEMU before 9.0 does not pass them on"
                )
        async for chain in queue:
            await self.serve_request(chain)

    async def _serve_events(self, queue: Virtqueue) -> None:
        last = -1
        async for chain in queue:
            last = chain.number
            await self.take_event(chain)
        put_back_buffers(self.interrupts, last)

    async def serve_request(self, chain: Chain) -> None:
        """Do what a chain of the request queue asks for, and complete it."""
        refused = (BadRequestError, LineError)
        status, data = GpioStatus.ERR, b"\0"
        with self._own.code(self._what, "the guest gets an error", expected=refused) as attempt, in_time():
            request = parse_request(chain, len(self.interrupts), len(self._names))
            data = await self._execute(request)
            status = GpioStatus.OK
        if attempt.refusal is not None:
            self._once.warning(f"the guest gets an error for {attempt.refusal}")
        write_response(chain, status, data)

    async def take_event(self, chain: Chain) -> None:
        """Unmask an interrupt with a chain of the event queue, or complete it where that is none."""
        try:
            line = parse_event(chain, len(self.interrupts))
        except BadRequestError as error:
            self._once.warning(f"the guest gets an error for {error}")
            give_back(chain, IrqStatus.INVALID)
            return
        if self.interrupts[line].type.is_level:
            with self._own.code(self._what, "an interrupt by level may come late"), in_time():
                await self._chip.refresh(line)
        self.interrupts[line].unmask(chain)

    async def _execute(self, request: Request) -> bytes:
        """Do what is asked for; return the response after its status. Raises LineError, BadRequestError."""
        line, value = request.line, request.value
        match request.type:
            case GpioRequestType.GET_LINE_NAMES:
                return self._names
            case GpioRequestType.GET_DIRECTION:
                return bytes([await self._direction(line)])
            case GpioRequestType.SET_DIRECTION:
                await self._set_direction(line, Direction(value))
            case GpioRequestType.GET_VALUE:
                return bytes([_level(await self._chip.value(line))])
            case GpioRequestType.SET_VALUE:
                await self._chip.set_value(line, value)
            case GpioRequestType.SET_IRQ_TYPE:
                await self._set_irq_type(line, IrqType(value))
        return b"\0"

    async def _set_direction(self, line: int, direction: Direction) -> None:
        interrupt = self.interrupts[line]
        if direction is Direction.OUT and interrupt.type is not IrqType.NONE:
            raise LineError(f"line {line} cannot become an output while its interrupt is enabled")
        if direction is Direction.NONE and interrupt.type is not IrqType.NONE:
            await self._set_irq_type(line, IrqType.NONE)
        await self._chip.set_direction(line, direction)

    async def _set_irq_type(self, line: int, kind: IrqType) -> None:
        if not self._has_interrupts:
            raise BadRequestError("a request for interrupts, which the driver has not turned on")
        if kind is IrqType.NONE:
            await self._chip.watch(line, kind)
            self.interrupts[line].disable()
            return
        if await self._direction(line) is Direction.OUT:
            raise LineError(f"line {line} is an output, which has no interrupts")
        self.interrupts[line].enable(kind, _level(await self._chip.watch(line, kind)))

    async def _direction(self, line: int) -> Direction:
        """Return what the line is used for. Raises ValueError where the chip says what cannot be."""
        return Direction(await self._chip.direction(line))


def _level(value: object) -> int:
    """Return what a chip says of a line. Raises ValueError where that is not a level."""
    if value not in {0, 1}:
        raise ValueError(f"a line's level is 0 or 1, and not {value!r}")
    return int(bool(value))
