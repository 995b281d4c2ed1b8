"""The ports of a console device: numbers, names, host sides and their tasks.

How it works: ports are plugged and unplugged by scripts at any time, also while tasks of queues wait for
them. So queues wait at `changed`, which belongs to the number and not to the port, and look the port up
again when they wake. A host side runs in a task of its own from plug to unplug, with a guest or without,
and is closed only when that task has ended: its descriptors belong to the table from `plug()` to
`_close()`. Control messages are not queued: `control` derives them from what the driver has not been told
yet.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from vhost_user.devices.console.control import Control, PortState
from vhost_user.devices.console.port import ConsolePort
from vhost_user.devices.console.simulation import PortSimulation
from vhost_user.own_code.containment import Containment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.devices.console.descriptions import PortDescription

_log = logging.getLogger("vhost_user")


@dataclass
class PluggedPort:
    """A port that is plugged in, and the task of its host side."""

    port: ConsolePort
    part: PortSimulation
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event | None = None
    """None where there never was a task. Each has a scope and an event of its own."""


class PortTable:
    """All ports of a device, by their numbers, with the control messages about them."""

    def __init__(self, max_ports: int, *, rows_first: bool, resized: Callable[[], None]) -> None:
        """Make room for `max_ports`. `resized` is called when a console has another size."""
        self.control = Control(max_ports, rows_first=rows_first)
        self.changed = [trio.lowlevel.ParkingLot() for _ in range(max_ports)]
        """One a port number, whether there is such a port or not: queues wait there."""
        self.to_tell = trio.lowlevel.ParkingLot()
        """Unparked when there may be something to tell the driver."""
        self._plugs: dict[int, PluggedPort] = {}
        self._resized = resized
        self._nursery: trio.Nursery | None = None
        self._own = Containment(_log)

    def get(self, number: int) -> ConsolePort | None:
        """Return a port, if there is one of that number."""
        plug = self._plugs.get(number)
        return None if plug is None else plug.port

    def by_name(self) -> dict[str, PortSimulation]:
        """Return what scripts have of the ports, by their names."""
        return {plug.part.name: plug.part for plug in self._plugs.values()}

    def number_of(self, name: str) -> int:
        """Return the number of a port. Raises KeyError where there is none."""
        for number, plug in self._plugs.items():
            if plug.part.name == name:
                return number
        raise KeyError(name)

    def free_number(self, *, console: bool) -> int:
        """Return a number that is free, 0 for a console alone. Raises ValueError where there is none."""
        for number in range(0 if console else 1, self.control.max_ports):
            if number not in self._plugs:
                return number
        raise ValueError(f"no port is left of {self.control.max_ports}; start with a larger --max-ports")

    def plug(self, number: int, options: PortDescription) -> PortSimulation:
        """Plug a port in. Raises ValueError where its number or name is taken, UserError."""
        if options.name in self.by_name():
            raise ValueError(f"there is a port {options.name} already")
        state = PortState(options.name, options.is_console, options.size)
        self.control.add(number, state)
        try:
            port = ConsolePort(state, options.open(), blocks=options.blocks, backlog=options.backlog)
        except BaseException:
            self.control.remove(number)
            raise
        port.changed = self.changed[number]
        port.callbacks.tell = self.tell
        port.callbacks.resized = self._tell_size
        plug = self._plugs[number] = PluggedPort(port, PortSimulation(options.name, port))
        self._start(plug)
        self._wake(number)
        return plug.part

    async def unplug(self, number: int) -> None:
        """Unplug a port, and close its host side."""
        plug = self._plugs.pop(number)
        self.control.remove(number)
        self._wake(number)
        plug.scope.cancel()
        if plug.ended is not None:
            with trio.CancelScope(shield=True):
                await plug.ended.wait()
        self._close(plug)

    def tell(self) -> None:
        """Tell the driver what is new."""
        self.to_tell.unpark_all()

    @contextlib.contextmanager
    def guest_changes(self) -> Iterator[None]:
        """Tell those ports that the guest opens or closes in the block."""
        before = {number: plug.port.state.guest_open for number, plug in self._plugs.items()}
        yield
        for number, was_open in before.items():
            port = self._plugs[number].port
            if port.state.guest_open != was_open:
                port.guest_changed()

    async def run(self) -> None:
        """Run the host sides of all ports, also of those that are plugged in later."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for plug in self._plugs.values():
                    self._start(plug)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def close(self) -> None:
        """Close the host sides; their sockets and links are removed."""
        for plug in self._plugs.values():
            self._close(plug)

    def _close(self, plug: PluggedPort) -> None:
        if plug.port.host is not None:
            with self._own.code(f"the host's end of port {plug.part.name}", "it was to be closed"):
                plug.port.host.close()

    def _wake(self, number: int) -> None:
        self.changed[number].unpark_all()
        self.tell()

    def _tell_size(self) -> None:
        self.tell()
        self._resized()

    def _start(self, plug: PluggedPort) -> None:
        if self._nursery is not None and plug.port.host is not None:
            plug.scope, plug.ended = trio.CancelScope(), trio.Event()
            self._nursery.start_soon(self._run_host_side, plug, name=f"port {plug.part.name}")

    async def _run_host_side(self, plug: PluggedPort) -> None:
        """Run a host side, to its end or until the port is unplugged; one that fails is a closed one."""
        host, ended = plug.port.host, plug.ended
        assert host is not None
        assert ended is not None
        _log.info("port %s is %s", plug.part.name, host)
        try:
            with plug.scope, self._own.code(f"the host's end of port {plug.part.name}", "it is closed"):
                await host.run(plug.port)
        finally:
            plug.port.host_closed()
            ended.set()
