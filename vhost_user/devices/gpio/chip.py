"""The interface of a chip with GPIO lines, of the host or simulated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from vhost_user.own_code.containment import refuse_async

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.virtio.gpio import Direction, IrqType
    from vhost_user.devices.gpio.interrupts import Interrupt


class LineError(Exception):
    """A line cannot do what it is asked for; one line that says why. Its driver gets an error."""


class Chip(ABC):
    """Lines, which go by their numbers from 0. One object serves one device."""

    names: Sequence[str]
    """The names of all lines, ASCII without zero bytes, each there once; "" for a line without."""

    def __init_subclass__(cls, **arguments: object) -> None:
        """Raise TypeError for an async method that is called without await."""
        super().__init_subclass__(**arguments)
        refuse_async(cls, Chip)

    def attach(self, interrupts: Sequence[Interrupt]) -> None:
        """Take the lines' interrupts, to `signal()` each change of a line whose interrupt is watched."""
        self.interrupts = interrupts

    @abstractmethod
    async def direction(self, line: int) -> Direction:
        """Return what the line is used for."""

    @abstractmethod
    async def set_direction(self, line: int, direction: Direction) -> None:
        """Use the line so from now on. Raises LineError.

        With OUT it has the value that was set last; with NONE all that was set of it is forgotten.
        """

    @abstractmethod
    async def value(self, line: int) -> int:
        """Return the line's level, 0 or 1. Raises LineError for one that is not used."""

    @abstractmethod
    async def set_value(self, line: int, value: int) -> None:
        """Give an output the level `value`; another line has it once it is an output. Raises LineError."""

    @abstractmethod
    async def watch(self, line: int, kind: IrqType) -> int:
        """Signal changes that matter for interrupts of `kind` from now on; return the level. NONE: do not.

        Raises LineError.
        """

    @abstractmethod
    async def refresh(self, line: int) -> None:
        """Signal the level of a line as it is now, if what was signalled last may be another one."""

    @abstractmethod
    def reset(self) -> None:
        """Use no line any more, as after SET_DIRECTION with NONE for each."""

    async def run(self) -> None:
        """Do what is to be done while a front-end is connected. Cancelled at its end."""
        await trio.sleep_forever()

    @abstractmethod
    def close(self) -> None:
        """Release what the chip holds of the host."""
