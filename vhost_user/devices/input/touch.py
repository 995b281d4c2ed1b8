"""A simulated touch screen (Linux's multi-touch protocol, type B, for several fingers)."""

from __future__ import annotations

import trio

from protocol.program.units import Seconds  # noqa: TC001 -- calls are made by it
from protocol.virtio.input import AbsInfo, Event
from protocol.virtio.input_codes import BTN_TOUCH, Abs, EventType, Property
from vhost_user.devices.input.pointers import DEFAULT_SIZE, Size
from vhost_user.devices.input.reports import Description
from vhost_user.devices.input.simulation import SimulatedInput
from vhost_user.simulation.simulation import call

DEFAULT_SLOTS = 10
MAX_SLOTS = 32
_MAX_TRACKING_ID = 0xFFFF
_SWIPE_STEPS = 20
DEFAULT_SWIPE = 0.3
"""Seconds that a swipe takes."""

_Events = list[tuple[EventType, int, int]]


class Touchscreen(SimulatedInput):
    """A touch screen. A finger that touches it has a slot, from 0 on.

    With several slots, all fingers are told by the axes ABS_MT, and the one that has been there the
    longest by ABS_X, ABS_Y and BTN_TOUCH too, as by a screen with one slot.
    """

    kind = "touchscreen"

    def __init__(self, size: Size = DEFAULT_SIZE, *, slots: int = DEFAULT_SLOTS) -> None:
        axes = size.axes()
        if slots > 1:
            axes |= {
                Abs.MT_SLOT: AbsInfo(0, slots - 1),
                Abs.MT_POSITION_X: axes[Abs.X],
                Abs.MT_POSITION_Y: axes[Abs.Y],
                Abs.MT_TRACKING_ID: AbsInfo(0, _MAX_TRACKING_ID),
            }
        events: dict[int, frozenset[int]] = {
            EventType.KEY: frozenset({BTN_TOUCH}),
            EventType.ABS: frozenset(axes),
        }
        super().__init__(
            Description(
                "qemu-companion touch screen",
                properties=frozenset({Property.DIRECT}),
                events=events,
                axes=axes,
            )
        )
        self._size = size
        self._slots = slots
        self._touches: dict[int, tuple[int, int]] = {}
        self._next_id = 0

    @call
    async def touch_down(self, slot: int, x: int, y: int) -> None:
        """Touch the screen with a finger that stays there."""
        self._size.check(x, y)
        async with self._hands:
            self._check_slot(slot, is_down=False)
            await self._report(*self._down_events(slot, x, y))

    @call
    async def touch_move(self, slot: int, x: int, y: int) -> None:
        """Move a finger that touches the screen."""
        self._size.check(x, y)
        async with self._hands:
            self._check_slot(slot, is_down=True)
            await self._report(*self._move_events(slot, x, y))

    @call
    async def touch_up(self, slot: int) -> None:
        """Lift a finger."""
        async with self._hands:
            self._check_slot(slot, is_down=True)
            await self._report(*self._up_events(slot))

    @call
    async def tap(self, x: int, y: int) -> None:
        """Touch the screen for a moment, with the first finger that is free."""
        await self._draw([(x, y)], 0)

    @call
    async def swipe(self, x1: int, y1: int, x2: int, y2: int, seconds: Seconds = DEFAULT_SWIPE) -> None:
        """Draw a straight line with the first finger that is free."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a swipe cannot take {seconds} seconds; give 0 or more")
        steps = range(_SWIPE_STEPS + 1)
        between = [
            (x1 + (x2 - x1) * step // _SWIPE_STEPS, y1 + (y2 - y1) * step // _SWIPE_STEPS) for step in steps
        ]
        self._size.check(x2, y2)
        await self._draw(between, max(seconds / _SWIPE_STEPS - self.pace, 0))

    async def _draw(self, places: list[tuple[int, int]], pause: float) -> None:
        """Touch the first place, move to the others with a pause before each, and lift the finger."""
        self._size.check(*places[0])
        async with self._hands:
            slot = self._free_slot()
            try:
                await self._report(*self._down_events(slot, *places[0]))
                for x, y in places[1:]:
                    await trio.sleep(pause)
                    await self._report(*self._move_events(slot, x, y))
                await self._report(*self._up_events(slot))
            finally:
                if slot in self._touches:  # an error or a cancellation: the finger does not stay
                    self.reports.post(Event(*event) for event in self._up_events(slot))

    # What is told of a finger

    def _down_events(self, slot: int, x: int, y: int) -> _Events:
        is_first = not self._touches
        self._touches[slot] = (x, y)
        touch: _Events = [(EventType.KEY, BTN_TOUCH, 1)] if is_first else []
        tracked = (EventType.ABS, Abs.MT_TRACKING_ID, self._next_id)
        self._next_id = (self._next_id + 1) & _MAX_TRACKING_ID
        return [
            *self._in_slot(slot, tracked, *self._place(x, y)),
            *touch,
            *(self._pointer() if is_first else []),
        ]

    def _move_events(self, slot: int, x: int, y: int) -> _Events:
        self._touches[slot] = (x, y)
        is_pointer = slot == next(iter(self._touches))
        return [*self._in_slot(slot, *self._place(x, y)), *(self._pointer() if is_pointer else [])]

    def _up_events(self, slot: int) -> _Events:
        was_pointer = slot == next(iter(self._touches))
        del self._touches[slot]
        rest: _Events = []
        if not self._touches:
            rest = [(EventType.KEY, BTN_TOUCH, 0)]
        elif was_pointer:
            rest = self._pointer()
        return [*self._in_slot(slot, (EventType.ABS, Abs.MT_TRACKING_ID, -1)), *rest]

    def _in_slot(self, slot: int, *events: tuple[EventType, int, int]) -> _Events:
        """Return multi-touch events of a slot; none for a screen that has one only."""
        return [(EventType.ABS, Abs.MT_SLOT, slot), *events] if self._slots > 1 else []

    @staticmethod
    def _place(x: int, y: int) -> _Events:
        return [(EventType.ABS, Abs.MT_POSITION_X, x), (EventType.ABS, Abs.MT_POSITION_Y, y)]

    def _pointer(self) -> _Events:
        """Return where the oldest touch is, for programs that know of one finger."""
        x, y = next(iter(self._touches.values()))
        return [(EventType.ABS, Abs.X, x), (EventType.ABS, Abs.Y, y)]

    def _check_slot(self, slot: int, *, is_down: bool) -> None:
        if not 0 <= slot < self._slots:
            raise ValueError(
                f"there is no slot {slot}: they are 0 to {self._slots - 1}, which --slots changes"
            )
        if (slot in self._touches) != is_down:
            raise ValueError(
                f"slot {slot} does not touch the screen; touch it first"
                if is_down
                else f"slot {slot} touches the screen already; lift it first"
            )

    def _free_slot(self) -> int:
        for slot in range(self._slots):
            if slot not in self._touches:
                return slot
        raise ValueError("all slots touch the screen already; lift one first, or have more with --slots")
