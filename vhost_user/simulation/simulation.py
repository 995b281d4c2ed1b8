"""Simulation: the calls, events and parts of what is simulated behind a device.

How it works: everything runs in the loop's thread. A simulation belongs to the program that made it, and
outlives the front-ends. It is changed by three kinds of tasks: those of the program, one a client of the
control socket, and those of the device, which ask it at the guest's requests. A method that does not await
is atomic among them. Events go from a part to its whole, and into a queue a listener; `emit()` never waits.
A listener that is EVENT_BACKLOG events behind gets what was kept, and then EventsLostError.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from vhost_user.simulation.calls import Call, CallError

if TYPE_CHECKING:
    from collections.abc import Iterator

EVENT_BACKLOG = 4096
"""How many events a listener may be behind; one that is further behind is told that it lost some."""

_MARK = "_is_call_of_simulation"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class EventsLostError(Exception):
    """Whoever listens for events was too slow: some are lost."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a simulation: its `name`, what is to be known, and the part, "" for all."""

    name: str
    data: Mapping[str, object] = field(default_factory=dict)
    on: str = ""


def call(function: _Function) -> _Function:
    """Let a method of a Simulation be called over the control socket, too; it may be async.

    Its arguments and result are annotated with what JSON can say: int, float, bool, str, bytes (in
    JSON a text of hexadecimal digits), enumerations of strings, Literal, list[...], `... | None`.
    It raises ValueError for what its caller did wrong. No argument is called `on`, which tells the
    part that a call is for; TypeError says so.
    """
    if "on" in inspect.signature(function).parameters:
        raise TypeError(f"{function.__name__}: no argument of a call can be called 'on'")
    setattr(function, _MARK, True)
    return function


class Simulation:
    """What is simulated behind a device: methods marked with `@call`, events, and parts that have both.

    ::

        class Lamp(Simulation):
            @call
            def switch(self, lit: bool) -> None:
                self.emit("light", lit=lit)

    A program makes the calls as it makes any; `--control PATH` offers the same calls to others.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Simulation] = {}
        self._whole: tuple[Simulation, str] | None = None
        self._listeners: list[Events] = []

    @property
    def parts(self) -> Mapping[str, Simulation]:
        """The parts by name."""
        return MappingProxyType(self._parts)

    def add_part(self, name: str, part: Simulation) -> None:
        """Make `part` one of the parts. Raises ValueError where the name is taken, empty or has a slash."""
        if not name or "/" in name or name in self._parts:
            raise ValueError(f"'{name}' cannot be the name of another part")
        self._parts[name] = part
        part._whole = (self, name)

    def remove_part(self, name: str) -> None:
        """Remove a part. Raises KeyError where there is none of that name."""
        self._parts.pop(name)._whole = None

    def find(self, path: str) -> Simulation:
        """Return the part of that name, or with slashes a part's part; itself for "". Raises CallError."""
        found = self
        for name in path.split("/") if path else ():
            if name not in found._parts:
                raise CallError(f"there is no part '{name}'{_among(found._parts)}")
            found = found._parts[name]
        return found

    def emit(self, event: str, **data: object) -> None:
        """Tell everybody who listens here, or to the whole that this is a part of."""
        self._tell(Event(event, data))

    @contextlib.contextmanager
    def events(self, on_lost: Callable[[], None] = lambda: None) -> Iterator[Events]:
        """Listen for events, those of the parts too, for the length of a `with` block: iterate over it.

        `on_lost` is called at once when the first event is lost because the listener is too slow.
        """
        listener = Events(on_lost)
        self._listeners.append(listener)
        try:
            yield listener
        finally:
            self._listeners.remove(listener)

    def calls(self) -> dict[str, Call]:
        """Return what can be called here, by name."""
        found = inspect.getmembers_static(type(self), lambda member: getattr(member, _MARK, False))
        return {name: Call(getattr(self, name)) for name, _ in found}

    def find_call(self, name: str) -> Call:
        """Return what is called `name`. Raises CallError."""
        calls = self.calls()
        if name not in calls:
            raise CallError(f"there is no call '{name}'{_among(calls)}")
        return calls[name]

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)
        if self._whole is not None:
            whole, name = self._whole
            whole._tell(Event(event.name, event.data, f"{name}/{event.on}" if event.on else name))


class Events:
    """The events of a simulation from now on, to iterate over. `Simulation.events()` makes one."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._waiting: deque[Event] = deque()
        self._is_lossy = False
        self._on_lost = on_lost
        self._arrived = trio.lowlevel.ParkingLot()

    def put(self, event: Event) -> None:
        """Add an event; the listener gets it in its time."""
        if len(self._waiting) < EVENT_BACKLOG:
            self._waiting.append(event)
            self._arrived.unpark()
        elif not self._is_lossy:
            self._is_lossy = True
            self._on_lost()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Raises EventsLostError after those that were kept, if others were not."""
        while not self._waiting:
            if self._is_lossy:
                raise EventsLostError(f"more than {EVENT_BACKLOG} events were not fetched: some are lost")
            await self._arrived.park()
        await trio.lowlevel.checkpoint()
        return self._waiting.popleft()


def _among(names: Mapping[str, object]) -> str:
    return f"; there are {', '.join(sorted(names))}" if names else "; there are none"
