"""Simulated input devices: what they have in common, and the keyboard."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from protocol.virtio.input import Event
from protocol.virtio.input_codes import KEYS, EventType, Led, Rep
from vhost_user.devices.input.keymap import LEDS, chord, key_code, keys_for, led_name
from vhost_user.devices.input.reports import Description, Reports
from vhost_user.simulation.simulation import Simulation, call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

DEFAULT_PACE = 0.01
"""Seconds between one report and the next: enough for a program in the guest to keep up."""


class SimulatedInput(Simulation):
    """An input device whose hands are its calls.

    A call returns when the driver has taken all its events: with none there, it waits for one. Calls
    of one device are done one after the other. What a call that is cancelled has pressed, it releases.
    """

    kind = ""
    """What options and scripts call it."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.reports = Reports()
        self.pace = DEFAULT_PACE
        """Seconds between one report and the next."""
        self._hands = trio.Lock()
        self._down: list[int] = []

    def take_status(self, event: Event) -> None:
        """Tell what the driver sent."""
        self.emit("status", type=event.type, code=event.code, value=event.value)

    async def run(self) -> None:
        """Do nothing: all that happens are calls."""

    def close(self) -> None:
        """Do nothing: it holds nothing of the host."""

    @call
    async def ready(self) -> None:
        """Wait until a driver in the guest is ready for events."""
        await self.reports.ready.wait()

    async def _report(self, *events: tuple[EventType, int, int]) -> None:
        """Send a report, once the driver has room, and keep to the pace."""
        await self.reports.send(Event(*event) for event in events)
        await trio.sleep(self.pace)

    async def _press(self, code: int) -> None:
        self._down.append(code)
        await self._report((EventType.KEY, code, 1))

    async def _release(self, code: int) -> None:
        self._down.remove(code)
        await self._report((EventType.KEY, code, 0))

    @contextlib.asynccontextmanager
    async def _held(self, codes: Iterable[int]) -> AsyncIterator[None]:
        """Hold keys or buttons for the length of the block; those that are down already stay down."""
        mine = []
        try:
            for code in codes:
                if code not in self._down:
                    mine.append(code)
                    await self._press(code)
            yield
            while mine:
                await self._release(mine.pop())
        finally:
            for code in reversed(mine):  # after an error or a cancellation: nothing stays pressed
                self._down.remove(code)
                self.reports.post([Event(EventType.KEY, code, 0)])

    async def _stroke(self, codes: Iterable[int]) -> None:
        async with self._held(codes):
            pass

    async def _hold(self, code: int, name: str) -> None:
        """Press a key or button that stays down. Raises ValueError."""
        async with self._hands:
            if code in self._down:
                raise ValueError(f"{name} is down already; release it first")
            await self._press(code)

    async def _let_go(self, code: int, name: str) -> None:
        """Release what `_hold()` pressed. Raises ValueError."""
        async with self._hands:
            if code not in self._down:
                raise ValueError(f"{name} is not down; press it first")
            await self._release(code)


class Keyboard(SimulatedInput):
    """A keyboard with a US layout and three LEDs."""

    kind = "keyboard"

    def __init__(self, *, repeats: bool = False) -> None:
        """With `repeats`, the guest repeats a key that is held."""
        events: dict[int, frozenset[int]] = {
            EventType.KEY: frozenset(KEYS.values()),
            EventType.LED: frozenset(LEDS),
        }
        if repeats:
            events[EventType.REP] = frozenset(Rep)
        super().__init__(Description("qemu-companion keyboard", events=events))
        self._lit: set[str] = set()
        self._waited_for: dict[tuple[str, bool], trio.Event] = {}

    def take_status(self, event: Event) -> None:
        """Switch a LED; tell of that, and of how the driver repeats keys."""
        if event.type == EventType.LED and event.code in LEDS:
            self._switch(Led(event.code).name, on=bool(event.value))
        elif event.type == EventType.REP and event.code in list(Rep):
            self.emit("repeat", **{Rep(event.code).name.lower(): event.value})
        else:
            super().take_status(event)

    @call
    async def type_text(self, text: str) -> None:
        """Type a text, with shift where a US keyboard needs it; a line break is ENTER."""
        strokes: Sequence[list[int]] = [keys_for(character) for character in text]
        async with self._hands:
            for codes in strokes:
                await self._stroke(codes)

    @call
    async def press(self, keys: str) -> None:
        """Press keys together and release them: `A`, `CTRL+ALT+DELETE`."""
        codes = chord(keys)
        async with self._hands:
            await self._stroke(codes)

    @call
    async def key_down(self, key: str) -> None:
        """Press a key that stays down."""
        await self._hold(key_code(key), f"key {key}")

    @call
    async def key_up(self, key: str) -> None:
        """Release a key that `key_down` pressed."""
        await self._let_go(key_code(key), f"key {key}")

    @call
    def leds(self) -> list[str]:
        """Return the names of the LEDs that are on."""
        return sorted(self._lit)

    @call
    async def wait_led(self, led: str, lit: bool = True) -> None:
        """Wait until the guest has switched a LED on, or off: numl, capsl, scrolll.

        However short that was: one that is switched on and off at once has been on.
        """
        name = led_name(led)
        if (name in self._lit) != lit:
            await self._waited_for.setdefault((name, lit), trio.Event()).wait()

    def _switch(self, led: str, *, on: bool) -> None:
        (self._lit.add if on else self._lit.discard)(led)
        if (waited := self._waited_for.pop((led, on), None)) is not None:
            waited.set()
        self.emit("led", led=led, on=on)
