"""Simulated input devices that move a pointer: the mouse by steps, the tablet to a place."""

from __future__ import annotations

from typing import NamedTuple

from protocol.virtio.input import AbsInfo
from protocol.virtio.input_codes import BUTTONS, Abs, EventType, Rel
from vhost_user.devices.input.keymap import button_code
from vhost_user.devices.input.reports import Description
from vhost_user.devices.input.simulation import SimulatedInput
from vhost_user.simulation.simulation import call

MOST_STEPS = 32767
"""How far a mouse moves, or its wheel turns, in one report at most."""


class Size(NamedTuple):
    """Width and height of what is pointed at or touched, in pixels."""

    width: int
    height: int

    def axes(self) -> dict[int, AbsInfo]:
        """Return the axes by which a place is told."""
        return {Abs.X: AbsInfo(0, self.width - 1), Abs.Y: AbsInfo(0, self.height - 1)}

    def check(self, x: int, y: int) -> None:
        """Raise ValueError for a place outside."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise ValueError(f"{x} {y} is outside of {self.width}x{self.height}, which --size changes")


DEFAULT_SIZE = Size(1920, 1080)


class _Pointer(SimulatedInput):
    """Buttons and a wheel."""

    @call
    async def click(self, button: str = "left") -> None:
        """Press a button and release it: left, right, middle, side, extra, forward, back."""
        code = button_code(button)
        async with self._hands:
            await self._stroke([code])

    @call
    async def button_down(self, button: str = "left") -> None:
        """Press a button that stays down."""
        await self._hold(button_code(button), f"button {button}")

    @call
    async def button_up(self, button: str = "left") -> None:
        """Release a button that `button_down` pressed."""
        await self._let_go(button_code(button), f"button {button}")

    @call
    async def wheel(self, clicks: int, sideways: bool = False) -> None:
        """Turn the wheel away from the user (or to the right), with a negative number the other way."""
        _check_steps(clicks)
        if clicks:
            async with self._hands:
                await self._report((EventType.REL, Rel.HWHEEL if sideways else Rel.WHEEL, clicks))


class Mouse(_Pointer):
    """A mouse with seven buttons and a wheel."""

    kind = "mouse"

    def __init__(self) -> None:
        events: dict[int, frozenset[int]] = {
            EventType.KEY: frozenset(BUTTONS.values()),
            EventType.REL: frozenset(Rel),
        }
        super().__init__(Description("qemu-companion mouse", events=events))

    @call
    async def move(self, dx: int, dy: int) -> None:
        """Move by so many steps to the right and down, with negative numbers to the left and up."""
        _check_steps(dx, dy)
        steps = [(EventType.REL, axis, step) for axis, step in ((Rel.X, dx), (Rel.Y, dy)) if step]
        if steps:
            async with self._hands:
                await self._report(*steps)


class Tablet(_Pointer):
    """A pointer that is put to a place, with buttons and a wheel, as QEMU's own tablet."""

    kind = "tablet"

    def __init__(self, size: Size = DEFAULT_SIZE) -> None:
        events: dict[int, frozenset[int]] = {
            EventType.KEY: frozenset(BUTTONS.values()),
            EventType.REL: frozenset({Rel.WHEEL, Rel.HWHEEL}),
            EventType.ABS: frozenset({Abs.X, Abs.Y}),
        }
        super().__init__(Description("qemu-companion tablet", events=events, axes=size.axes()))
        self._size = size

    @call
    async def point(self, x: int, y: int) -> None:
        """Put the pointer to a place; 0 0 is top left."""
        self._size.check(x, y)
        async with self._hands:
            await self._report((EventType.ABS, Abs.X, x), (EventType.ABS, Abs.Y, y))


def _check_steps(*steps: int) -> None:
    for step in steps:
        if abs(step) > MOST_STEPS:
            raise ValueError(f"{step} is too much at once; give at most {MOST_STEPS}")
