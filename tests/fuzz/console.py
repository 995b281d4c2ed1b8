"""Any control messages to a console device whose ports change meanwhile.

The input is a row of steps. The lower two bits of a byte say which: a message of the driver's, whose
bytes follow; a buffer for the device's next message; a port that is plugged in or out; one that changes.
The other bits are the message's length, the buffer's size, or the port's number.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from protocol.errors import RemoteProtocolError
from protocol.virtio.console import NO_PORT, RESIZE, ControlEvent, ControlMessage
from tests.fuzz.harness import DefectError
from vhost_user.devices.console.control import Control, PortState

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PORTS = 4
RECEIVE, SEND, PLUG, CHANGE = range(4)


class _Driver:
    """What the driver has been told: which ports there are, and of which it knows that they are open."""

    def __init__(self) -> None:
        self.known: dict[int, bool] = {}

    def learn(self, data: bytes) -> None:
        """Take a message. Raises DefectError for one that the specification does not have a device send."""
        message = ControlMessage.decode(data)
        if message.port >= MAX_PORTS:
            raise DefectError(f"{message}: there is no such port")
        if message.event == ControlEvent.DEVICE_ADD:
            if message.port in self.known:
                raise DefectError(f"{message}: it is there already")
            self.known[message.port] = False
            return
        if message.port not in self.known:
            raise DefectError(f"{message}: it was never added")
        match message.event:
            case ControlEvent.DEVICE_REMOVE:
                del self.known[message.port]
            case ControlEvent.PORT_OPEN:
                self.known[message.port] = bool(message.value)
            case ControlEvent.RESIZE:
                RESIZE.unpack(message.extra)
            case ControlEvent.CONSOLE_PORT | ControlEvent.PORT_NAME:
                pass
            case _:
                raise DefectError(f"{message} is nothing that a device sends")


def one_input(data: bytes) -> None:
    """Fail where the device says what it must not, or does not come to an end."""
    control, driver = Control(MAX_PORTS), _Driver()
    at = 0
    while at < len(data):
        step, rest = data[at] & 3, data[at] >> 2
        at += 1
        if step == RECEIVE:
            _receive(control, driver, data[at : at + rest])
            at += rest
        elif step == SEND:
            if (message := control.next_message(rest)) is not None:
                driver.learn(message)
        elif step == PLUG:
            _plug(control, rest % MAX_PORTS, is_console=bool(rest & MAX_PORTS))
        else:
            _change(control.ports.get(rest % MAX_PORTS), rest)
    _finish(control, driver)


def _receive(control: Control, driver: _Driver, data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        control.receive(data)
        if ControlMessage.decode(data).event == ControlEvent.DEVICE_READY:
            driver.known.clear()


def _plug(control: Control, number: int, *, is_console: bool) -> None:
    if number in control.ports:
        control.remove(number)
    else:
        control.add(number, PortState(f"port {number}", is_console))


def _change(port: PortState | None, how: int) -> None:
    if port is not None:
        port.set_host_open(bool(how & 32))
        port.size = (how, how + 1) if how & 16 else port.size


def _finish(control: Control, driver: _Driver) -> None:
    """Take all that is left to be told: no more than seven messages a port."""
    for _ in range(7 * MAX_PORTS):
        if (message := control.next_message(4096)) is None:
            break
        driver.learn(message)
    if control.has_message():
        raise DefectError("the device does not stop telling")
    if control.is_ready and driver.known.keys() != control.ports.keys():
        raise DefectError(f"the driver knows {set(driver.known)}, and there are {set(control.ports)}")


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield a port's life, a number used again, drivers that begin anew, and wrong messages."""

    def say(event: int, port: int = 0, value: int = 1) -> bytes:
        return bytes([RECEIVE | 8 << 2]) + ControlMessage(port, event, value).encode()

    def step(kind: int, rest: int) -> bytes:
        return bytes([kind | rest << 2])

    hear = step(SEND, 63)
    begin = say(ControlEvent.DEVICE_READY, NO_PORT)
    life = (
        begin + step(PLUG, 4) + hear + say(ControlEvent.PORT_READY) + 2 * hear + say(ControlEvent.PORT_OPEN)
    )
    yield "life", life + step(CHANGE, 32) + hear + step(CHANGE, 16) + 2 * hear + step(PLUG, 0) + hear
    yield "used_again", life + step(PLUG, 0) + step(PLUG, 0) + say(ControlEvent.PORT_READY) + 4 * hear
    yield "anew", life + begin + hear + say(ControlEvent.PORT_READY) + 2 * hear
    yield "failed", begin + step(PLUG, 1) + hear + say(ControlEvent.PORT_READY, 1, 0) + step(CHANGE, 33)
    yield "small_buffers", begin + step(PLUG, 2) + step(SEND, 7) + step(SEND, 8)
    yield "unknown", begin + say(99) + say(ControlEvent.PORT_OPEN, 99) + step(RECEIVE, 3) + b"abc"
