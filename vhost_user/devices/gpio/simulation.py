"""Simulated GPIO lines, whose other ends a program, a test or a person drives and sees."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import trio

from protocol.program.units import Seconds  # noqa: TC001 -- calls are made by it
from protocol.virtio.gpio import Direction, IrqType
from vhost_user.devices.gpio.chip import Chip, LineError
from vhost_user.devices.gpio.interrupts import Interrupt
from vhost_user.simulation.calls import CallError
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Level: TypeAlias = Literal[0, 1]

PATIENCE_SECONDS = 10.0
"""How long a call waits for the guest."""

PRESS_SECONDS = 0.1

PULSE_SECONDS = 0.001
"""Time for a program in the guest to read an edge: Linux keeps 16 for it, and its kernel is quicker."""

MOST_SECONDS = 3600.0
MOST_PULSES = 1_000_000

_NOT_DONE = "does it still run? 'set' with wait=false does not wait"

_LEVELS: tuple[Level, Level] = (0, 1)


@dataclass(frozen=True)
class LineState:
    """A line as it is now."""

    direction: str
    """What the guest uses it for: none, out or in."""
    value: int
    """Its level, whoever drives it."""
    interrupts: str
    """Which the guest wants: none, edge-rising, edge-falling, edge-both, level-high, level-low."""
    delivered: int
    """How many interrupts of the line the guest was given."""
    merged: int
    """How many edges it did not see, as the guest was not done with others: only with `wait=False`."""


class SimulatedLine(Simulation):
    """One line: an input of the guest that is driven from here, or an output that is seen from here.

    Events: `direction` and `value`, when the guest has changed that; `interrupts`, when it wants others.
    """

    def __init__(self, name: str = "", *, initial: Level | None = None, active_low: bool = False) -> None:
        """`initial` is how the line is until it is driven, by default not active: 1 with `active_low`."""
        super().__init__()
        self.name = name
        self.direction = Direction.NONE
        """What the guest uses it for."""
        self.interrupt = Interrupt()
        """The line's, once it belongs to a device."""
        self._active: Level = 0 if active_low else 1
        self._outside: Level = _LEVELS[active_low] if initial is None else initial
        self._output: Level = 0
        self._driving = trio.Lock()
        self._changed = trio.lowlevel.ParkingLot()

    # What others may call

    @call
    def get(self) -> int:
        """Return the line's level, 0 or 1, whoever drives it."""
        return self.level

    @call
    def state(self) -> LineState:
        """Return direction, level and interrupts."""
        interrupt = self.interrupt
        return LineState(
            self.direction.name.lower(),
            self.level,
            _name(interrupt.type),
            interrupt.delivered,
            interrupt.merged,
        )

    @call
    async def set(self, value: Level, wait: bool = True, within: Seconds = PATIENCE_SECONDS) -> None:
        """Drive the line to a level.

        With `wait` first until the guest is done with the interrupt before, so that it misses none; at
        once where it wants none. Raises CallError if that takes longer than `within` seconds, and for
        a line that the guest drives.
        """
        async with self._turn(within):
            await self._drive(value, wait=wait, within=within)

    @call
    async def toggle(self, wait: bool = True, within: Seconds = PATIENCE_SECONDS) -> None:
        """Drive the line to the other level, as `set()` does."""
        async with self._turn(within):
            await self._drive(_LEVELS[not self._outside], wait=wait, within=within)

    @call
    async def press(self, seconds: Seconds = PRESS_SECONDS, within: Seconds = PATIENCE_SECONDS) -> None:
        """Make the line active, for so many seconds; return when the guest has handled that it no longer is.

        Waits before each change as `set()` does.
        """
        _check_seconds(seconds)
        async with self._turn(within):
            await self._drive(self._active, within=within)
            await trio.sleep(seconds)
            await self._drive(_LEVELS[not self._active], within=within)
            await self._handled(within)

    @call
    async def pulse(
        self, count: int = 1, seconds: Seconds = PULSE_SECONDS, within: Seconds = PATIENCE_SECONDS
    ) -> None:
        """Drive the line to the other level and back, so many times, staying `seconds` at each.

        Waits before each change as `set()` does, and returns when the guest has handled the last: these
        are 2 * `count` edges, and it gets all.
        """
        _check_seconds(seconds)
        if not 1 <= count <= MOST_PULSES:
            raise CallError(f"{count} pulses: give a number from 1 to {MOST_PULSES}")
        async with self._turn(within):
            for _ in range(2 * count):
                await self._drive(_LEVELS[not self._outside], within=within)
                await trio.sleep(seconds)
            await self._handled(within)

    @call
    async def wait_for(self, value: Level, within: Seconds = PATIENCE_SECONDS) -> None:
        """Wait until the line has a level, for an output until the guest has set that."""
        with _patience(within, f"the line has not got to {value}", "'state' tells who drives it"):
            while self.level != value:
                await self._changed.park()

    @call
    async def wait_for_interrupts(self, within: Seconds = PATIENCE_SECONDS) -> None:
        """Wait until the guest wants interrupts of the line: from then on each change reaches it."""
        what = "the guest has enabled no interrupt of the line"
        with _patience(within, what, "is its driver loaded, and does a program listen?"):
            while self.interrupt.type is IrqType.NONE:
                await self._changed.park()

    # What the guest does

    @property
    def level(self) -> Level:
        """The line's level: the guest's where it is an output, else that of the outside."""
        return self._output if self.direction is Direction.OUT else self._outside

    def use(self, direction: Direction) -> None:
        """The guest sets a direction; with NONE it forgets the value it has set."""
        before = self.level
        if direction is Direction.NONE:
            self._output = 0
        if direction is not self.direction:
            self.direction = direction
            self.emit("direction", direction=direction.name.lower())
        self._tell_of_change(before)

    def output(self, value: int) -> None:
        """The guest sets a value, which the line has once it is an output."""
        before = self.level
        self._output = _LEVELS[value]
        self._tell_of_change(before)

    def watched(self, kind: IrqType) -> None:
        """The guest enables interrupts of `kind`, or disables them with NONE."""
        if kind is not self.interrupt.type:
            self.emit("interrupts", type=_name(kind))
            self._changed.unpark_all()

    # Changes

    def _tell_of_change(self, before: Level) -> None:
        if self.level != before:
            self.emit("value", value=self.level)
            self._changed.unpark_all()

    async def _drive(self, value: Level, *, within: float, wait: bool = True) -> None:
        if wait and self.interrupt.would_be_lost(value):
            with _patience(within, "the guest is not done with the interrupt before", _NOT_DONE):
                await self.interrupt.until_taken(value)
        self.change(value)

    async def _handled(self, within: float) -> None:
        with _patience(within, "the guest is not done with the last interrupt", _NOT_DONE):
            await self.interrupt.until_handled()

    def change(self, value: Level) -> None:
        """Drive the line to a level at once. Raises CallError for one that the guest drives."""
        if self.direction is Direction.OUT:
            raise CallError("the guest drives this line, it is an output: 'get' tells its level")
        if value != self._outside:
            self._outside = value
            self.interrupt.signal(value)
            self._changed.unpark_all()

    def _turn(self, within: float) -> trio.Lock:
        """Check `within`; return what lets one call at a time drive the line."""
        _check_seconds(within)
        return self._driving


class SimulatedChip(Chip, Simulation):
    """A chip of simulated lines. Its parts are the lines, by their names, or numbers where they have none."""

    def __init__(self, lines: Sequence[SimulatedLine]) -> None:
        """Raises ValueError where two lines are called the same, or one by what cannot be a name."""
        super().__init__()
        self.lines = list(lines)
        self.names = [line.name for line in self.lines]
        for number, line in enumerate(self.lines):
            check_name(line.name)
            self.add_part(line.name or str(number), line)

    @call
    def state(self) -> dict[str, LineState]:
        """Return direction, level and interrupts of each line."""
        return {line.name or str(number): line.state() for number, line in enumerate(self.lines)}

    def attach(self, interrupts: Sequence[Interrupt]) -> None:
        """Give each line its interrupt."""
        super().attach(interrupts)
        for line, interrupt in zip(self.lines, interrupts, strict=True):
            line.interrupt = interrupt

    def reset(self) -> None:
        """Let the guest use no line; what is outside of it stays."""
        for line in self.lines:
            line.watched(IrqType.NONE)
            line.use(Direction.NONE)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    async def direction(self, line: int) -> Direction:
        """Return what the guest has set."""
        return self.lines[line].direction

    async def set_direction(self, line: int, direction: Direction) -> None:
        """Take what the guest sets."""
        self.lines[line].use(direction)

    async def value(self, line: int) -> int:
        """Return the level of a line. Raises LineError for one whose direction is not set."""
        found = self.lines[line]
        if found.direction is Direction.NONE:
            raise LineError(f"the value of line {line}, whose direction is not set")
        return found.level

    async def set_value(self, line: int, value: int) -> None:
        """Take what the guest sets."""
        self.lines[line].output(value)

    async def refresh(self, line: int) -> None:
        """Do nothing: each change is signalled at once."""

    async def watch(self, line: int, kind: IrqType) -> int:
        """Tell who listens. A change is signalled anyway."""
        self.lines[line].watched(kind)
        return self.lines[line].level


def check_name(name: str) -> None:
    """Raise ValueError for what cannot be the name of a line."""
    if not (name.isascii() and name.isprintable()) or "/" in name:
        raise ValueError(f"'{name}' cannot be the name of a line: give printable ASCII without a slash")


def _name(kind: IrqType) -> str:
    return kind.name.lower().replace("_", "-")


def _check_seconds(seconds: float) -> None:
    if not 0 <= seconds <= MOST_SECONDS:  # which NaN is not, either
        raise CallError(f"{seconds} seconds: give a number from 0 to {MOST_SECONDS:g}")


@contextmanager
def _patience(seconds: float, what: str, remedy: str) -> Iterator[None]:
    """Raise CallError where the block takes longer."""
    _check_seconds(seconds)
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise CallError(f"{what} within {seconds:g} s; {remedy}")
