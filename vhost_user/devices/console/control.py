"""The control messages of a console, without I/O (virtio 1.3, section 5.3.6.2).

It keeps what is so and what the driver was told, and derives messages from the difference. So what is
to be sent never takes more memory than the ports do, however the driver behaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.virtio.console import RESIZE, ControlEvent, ControlMessage

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class DeviceReady:
    """The driver takes control messages from now on, or (`ok` is False) has failed."""

    ok: bool


@dataclass(frozen=True)
class PortReady:
    """The driver can use a port, or (`ok` is False) could not set it up."""

    port: int
    ok: bool


@dataclass(frozen=True)
class GuestOpened:
    """The guest has opened a port, or closed it."""

    port: int
    is_open: bool


Told = DeviceReady | PortReady | GuestOpened
"""What a message of the driver's tells."""


@dataclass
class PortState:
    """What is so of a port. What its owner changes here, the driver is told in time."""

    name: str = ""
    is_console: bool = False
    size: tuple[int, int] | None = None
    """Columns and rows of a console; None while unknown."""
    host_open: bool = False
    guest_open: bool = False
    """Whether the guest has it open, by what the driver says."""
    has_closed: bool = field(default=False, init=False)
    """True while the driver has yet to be told that the host's end was closed, open again as it may be."""

    def set_host_open(self, is_open: bool) -> None:
        """Open or close the host's end."""
        self.has_closed |= self.host_open and not is_open
        self.host_open = is_open


@dataclass
class _Slot:
    """What the driver has been told of a port."""

    port: PortState
    is_ready: bool = False
    is_console: bool = False
    name: str = ""
    size: tuple[int, int] | None = None
    host_open: bool = False


class Control:
    """Both directions of the control queues: `receive()` takes messages, `next_message()` gives them."""

    def __init__(self, max_ports: int, *, rows_first: bool = False) -> None:
        """Number ports from 0 to `max_ports` - 1. `rows_first` suits drivers that take rows for columns."""
        self.max_ports = max_ports
        self.ports: dict[int, PortState] = {}
        self.is_ready = False
        """True once the driver takes messages."""
        self._rows_first = rows_first
        self._slots: dict[int, _Slot] = {}

    def add(self, number: int, port: PortState) -> None:
        """Add a port. Raises ValueError where there is one of that number, or none may be."""
        if not 0 <= number < self.max_ports:
            raise ValueError(f"port {number} is not one of 0 to {self.max_ports - 1}")
        if number in self.ports:
            raise ValueError(f"there is a port {number} already")
        self.ports[number] = port

    def remove(self, number: int) -> None:
        """Remove a port. Raises KeyError where there is none."""
        self.ports.pop(number).guest_open = False

    def reset(self) -> None:
        """Forget the driver, which begins again."""
        self.is_ready = False
        self._slots.clear()
        for port in self.ports.values():
            port.guest_open = port.has_closed = False

    def receive(self, data: bytes) -> Told | None:
        """Take a message of the driver's; return what it tells, None where that is overtaken by now.

        A message about a port may be on its way while the port is removed. Raises RemoteProtocolError
        for what no driver should send.
        """
        message = ControlMessage.decode(data)
        if message.event == ControlEvent.DEVICE_READY:
            self.reset()  # a driver that begins again says so, while not every front-end does
            self.is_ready = message.value == 1
            return DeviceReady(self.is_ready)
        if message.event not in {ControlEvent.PORT_READY, ControlEvent.PORT_OPEN}:
            raise RemoteProtocolError(f"{message} is nothing that a driver sends")
        if message.port >= self.max_ports:
            raise RemoteProtocolError(f"{message}: there are ports from 0 to {self.max_ports - 1}")
        slot = self._slots.get(message.port)
        if slot is None or slot.port is not self.ports.get(message.port):
            return None
        if message.event == ControlEvent.PORT_READY:
            return self._port_ready(slot.port, message)
        return _port_open(slot, message)

    def has_message(self) -> bool:
        """Tell whether there is something that the driver is to be told now."""
        return self._next() is not None

    def next_message(self, room: int) -> bytes | None:
        """Return the next message, which counts as told then; None where it has more than `room` bytes.

        None, too, where there is none.
        """
        message = self._next()
        if message is None or len(data := message.encode()) > room:
            return None
        self._told(message)
        return data

    def _port_ready(self, port: PortState, message: ControlMessage) -> PortReady:
        """Note that the driver has set a port up, perhaps again: it knows nothing of it then."""
        is_ready = message.value == 1
        port.guest_open = port.has_closed = False
        self._slots[message.port] = _Slot(port, is_ready=is_ready)
        return PortReady(message.port, is_ready)

    def _next(self) -> ControlMessage | None:
        if not self.is_ready:
            return None
        numbers = sorted(self.ports.keys() | self._slots.keys())
        return next((message for number in numbers for message in self._due(number)), None)

    def _due(self, number: int) -> Iterator[ControlMessage]:
        """Yield what the driver is to be told of a port number: the first now, others perhaps later."""
        port, slot = self.ports.get(number), self._slots.get(number)
        if slot is None:
            yield ControlMessage(number, ControlEvent.DEVICE_ADD)
        elif port is not slot.port:
            yield ControlMessage(number, ControlEvent.DEVICE_REMOVE)
        elif slot.is_ready:
            yield from self._due_of_port(number, slot)

    def _due_of_port(self, number: int, slot: _Slot) -> Iterator[ControlMessage]:
        port = slot.port
        if port.is_console and not slot.is_console:
            yield ControlMessage(number, ControlEvent.CONSOLE_PORT, 1)
        if port.name != slot.name:
            yield ControlMessage(number, ControlEvent.PORT_NAME, 1, port.name.encode())
        if slot.host_open and (port.has_closed or not port.host_open):
            yield ControlMessage(number, ControlEvent.PORT_OPEN, 0)
        if port.host_open and not slot.host_open:
            yield ControlMessage(number, ControlEvent.PORT_OPEN, 1)
        if port.is_console and port.size not in {None, slot.size}:
            yield ControlMessage(number, ControlEvent.RESIZE, 0, self._size(port))

    def _size(self, port: PortState) -> bytes:
        columns, rows = port.size or (0, 0)
        return RESIZE.pack(rows, columns) if self._rows_first else RESIZE.pack(columns, rows)

    def _told(self, message: ControlMessage) -> None:
        """Note that the driver knows what `_next()` returned."""
        number = message.port
        if message.event == ControlEvent.DEVICE_ADD:
            self._slots[number] = _Slot(self.ports[number])
            return
        slot = self._slots[number]
        match message.event:
            case ControlEvent.DEVICE_REMOVE:
                del self._slots[number]
            case ControlEvent.CONSOLE_PORT:
                slot.is_console = True
            case ControlEvent.PORT_NAME:
                slot.name = slot.port.name
            case ControlEvent.PORT_OPEN:
                slot.host_open = bool(message.value)
                slot.port.has_closed = False
            case ControlEvent.RESIZE:
                slot.size = slot.port.size


def _port_open(slot: _Slot, message: ControlMessage) -> GuestOpened | None:
    if not slot.is_ready:
        return None
    slot.port.guest_open = message.value != 0
    return GuestOpened(message.port, slot.port.guest_open)
