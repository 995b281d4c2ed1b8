"""A device with a simulation behind it, and nothing else: lamps in a house."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import trio

from protocol.program.units import Seconds  # noqa: TC001 -- calls are made by it
from vhost_user import CallError, DeviceId, Simulation, VirtioDevice, call
from vhost_user.device_program import DeviceProgram

if TYPE_CHECKING:
    import argparse

    from vhost_user import Virtqueue


class Colour(StrEnum):
    """What lamps can shine in."""

    RED = "red"
    WARM = "warm white"


class Lamp(Simulation):
    """A lamp."""

    def __init__(self) -> None:
        super().__init__()
        self.is_on = False
        self.waiting = 0
        self.cancelled = 0

    @call
    def switch(self, lit: bool, brightness: int = 100) -> None:
        """Switch it on or off."""
        if not 0 < brightness <= 100:
            raise CallError(f"{brightness} is no percentage from 1 to 100")
        self.is_on = lit
        self.emit("light", lit=lit, brightness=brightness)

    @call
    def state(self) -> dict[str, Any]:
        """Tell whether it is on."""
        return {"on": self.is_on}

    @call
    async def burn_out(self) -> None:
        """Wait for ever."""
        self.waiting += 1
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled += 1

    @call
    def echo(  # noqa: PLR0917 -- one for each type
        self,
        number: int | None = None,
        real: float = 0.0,
        text: str = "",
        raw: bytes = b"",
        many: list[int] = [],  # noqa: B006 -- it is only returned
        mode: Literal["fast", 3] = "fast",
        colour: Colour = Colour.RED,
        pause: Seconds = 0.0,
    ) -> list[object]:
        """Return what came.

        In words of JSON.
        """
        return [number, real, text, raw, many, mode, colour, pause]

    @call
    def fail(self, error: str) -> None:
        """Fail as `error` says."""
        raise {"os": OSError(5, "the mains are off"), "defect": RuntimeError("a defect")}[error]

    def secret(self) -> None:
        """Be no call."""


class House(Simulation):
    """Lamps by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.add_part("hall", Lamp())
        self.add_part("attic", Simulation())
        self.parts["attic"].add_part("left", Lamp())

    @call
    def flood(self, count: int) -> None:
        """Emit that many events."""
        for number in range(count):
            self.emit("drop", number=number)


class Lamps(VirtioDevice):
    """Lamps that no guest sees."""

    device_id = DeviceId.CONSOLE
    name = "lamps"

    def __init__(self, house: House | None = None) -> None:
        self.simulation = house or House()

    async def run_queue(self, queue: Virtqueue) -> None:
        async for chain in queue:
            chain.complete()


class LampsProgram(DeviceProgram):
    """Lamps for as many guests as there are sockets."""

    device = Lamps
    many_sockets = True

    def make(self, options: argparse.Namespace) -> list[Lamps]:
        house = House()
        return [Lamps(house) for _ in self.socket_paths(options) or [""]]
