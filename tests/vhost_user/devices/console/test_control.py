"""The control messages of a console device: against a driver that believes all it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.errors import RemoteProtocolError
from protocol.virtio.console import NO_PORT, RESIZE, ControlEvent, ControlMessage
from vhost_user.devices.console.control import Control, DeviceReady, GuestOpened, PortReady, PortState

MAX_PORTS = 4
ROOM = 4096
READY = ControlMessage(NO_PORT, ControlEvent.DEVICE_READY, 1).encode()


def say(event: ControlEvent, port: int = 0, value: int = 1) -> bytes:
    """Return a message of the driver's."""
    return ControlMessage(port, event, value).encode()


def told(control: Control) -> list[str]:
    """Return all messages for the driver, in words."""
    messages = []
    while (data := control.next_message(ROOM)) is not None:
        message = ControlMessage.decode(data)
        messages.append(f"{message} {message.extra.hex()}".strip())
    assert not control.has_message()
    return messages


def ready(*ports: PortState) -> Control:
    """Return a device whose driver knows everything of these ports."""
    control = Control(MAX_PORTS)
    for number, port in enumerate(ports):
        control.add(number, port)
    control.receive(READY)
    told(control)
    for number in range(len(ports)):
        control.receive(say(ControlEvent.PORT_READY, number))
    told(control)
    return control


def test_nothing_is_told_before_the_driver_is_ready() -> None:
    control = Control(MAX_PORTS)
    control.add(0, PortState("console", is_console=True, host_open=True))
    assert told(control) == []
    assert control.receive(READY) == DeviceReady(ok=True)
    assert told(control) == ["DEVICE_ADD port=0 value=0"]


def test_console_is_told_once_its_port_is_ready() -> None:
    control = Control(MAX_PORTS)
    control.add(0, PortState("tty", is_console=True, size=(80, 25), host_open=True))
    control.receive(READY)
    told(control)
    assert control.receive(say(ControlEvent.PORT_READY)) == PortReady(0, ok=True)
    assert told(control) == [
        "CONSOLE_PORT port=0 value=1",
        "PORT_NAME port=0 value=1 747479",
        "PORT_OPEN port=0 value=1",
        "RESIZE port=0 value=0 50001900",
    ]


def test_size_has_its_rows_first_for_drivers_that_want_it_so() -> None:
    control = Control(1, rows_first=True)
    control.add(0, PortState(is_console=True, size=(80, 25)))
    control.receive(READY)
    told(control)
    control.receive(say(ControlEvent.PORT_READY))
    assert told(control)[-1] == "RESIZE port=0 value=0 19005000"


def test_port_that_is_no_console_has_no_size() -> None:
    port = PortState("agent")
    control = ready(port)
    port.size = (80, 25)
    assert told(control) == []


def test_close_is_told_even_where_the_port_is_open_again() -> None:
    port = PortState("agent", host_open=True)
    control = ready(port)
    port.set_host_open(False)
    port.set_host_open(True)
    assert told(control) == ["PORT_OPEN port=0 value=0", "PORT_OPEN port=0 value=1"]


def test_open_that_is_over_before_it_was_told_is_not_told() -> None:
    port = PortState("agent")
    control = ready(port)
    port.set_host_open(True)
    port.set_host_open(False)
    assert told(control) == []
    port.set_host_open(True)
    assert told(control) == ["PORT_OPEN port=0 value=1"]


def test_removed_port_is_told_and_its_number_may_be_used_again() -> None:
    control = ready(PortState("old"))
    control.remove(0)
    control.add(0, PortState("new"))
    assert told(control) == ["DEVICE_REMOVE port=0 value=0", "DEVICE_ADD port=0 value=0"]
    control.receive(say(ControlEvent.PORT_READY))
    assert told(control) == ["PORT_NAME port=0 value=1 6e6577"]


def test_message_that_does_not_fit_waits_for_a_larger_buffer() -> None:
    control = ready(port := PortState("a"))
    port.name = "longer"
    assert control.next_message(13) is None
    assert control.has_message()
    assert control.next_message(14) is not None
    assert not control.has_message()


def test_guest_opens_and_closes() -> None:
    control = ready(port := PortState("agent"))
    assert control.receive(say(ControlEvent.PORT_OPEN)) == GuestOpened(0, is_open=True)
    assert port.guest_open
    assert control.receive(say(ControlEvent.PORT_OPEN, value=0)) == GuestOpened(0, is_open=False)
    assert not port.guest_open


def test_port_that_the_driver_could_not_set_up_is_left_alone() -> None:
    control = Control(MAX_PORTS)
    control.add(0, PortState("agent", host_open=True))
    control.receive(READY)
    told(control)
    assert control.receive(say(ControlEvent.PORT_READY, value=0)) == PortReady(0, ok=False)
    assert told(control) == []


def test_driver_that_begins_anew_is_told_everything_again() -> None:
    control = ready(port := PortState("agent", host_open=True))
    control.receive(say(ControlEvent.PORT_OPEN))
    control.receive(READY)
    assert not port.guest_open
    assert told(control) == ["DEVICE_ADD port=0 value=0"]


def test_port_that_is_ready_again_is_told_everything_again() -> None:
    control = ready(port := PortState("agent", host_open=True))
    control.receive(say(ControlEvent.PORT_OPEN))
    control.receive(say(ControlEvent.PORT_READY))
    assert not port.guest_open
    assert told(control) == ["PORT_NAME port=0 value=1 6167656e74", "PORT_OPEN port=0 value=1"]


@pytest.mark.parametrize("event", [ControlEvent.PORT_READY, ControlEvent.PORT_OPEN])
def test_messages_about_a_port_that_is_gone_are_no_errors(event: ControlEvent) -> None:
    control = ready(PortState("agent"))
    control.remove(0)
    assert control.receive(say(event)) is None
    told(control)
    assert control.receive(say(event)) is None
    control.add(0, port := PortState("new"))
    told(control)
    assert control.receive(say(ControlEvent.PORT_OPEN)) is None
    assert not port.guest_open


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "0 bytes are not a control message"),
        (READY[:7], "7 bytes are not a control message"),
        (say(ControlEvent.DEVICE_ADD), "DEVICE_ADD port=0 value=1 is nothing that a driver sends"),
        (ControlMessage(0, 4711).encode(), "event 4711 port=0 value=0 is nothing"),
        (say(ControlEvent.PORT_OPEN, MAX_PORTS), "there are ports from 0 to 3"),
        (say(ControlEvent.PORT_READY, NO_PORT), "there are ports from 0 to 3"),
    ],
)
def test_wrong_message_is_refused(data: bytes, what: str) -> None:
    control = ready(PortState("agent"))
    with pytest.raises(RemoteProtocolError, match=what):
        control.receive(data)
    assert told(control) == []


def test_number_is_refused_that_is_taken_or_too_high() -> None:
    control = ready(PortState("agent"))
    with pytest.raises(ValueError, match="there is a port 0 already"):
        control.add(0, PortState())
    with pytest.raises(ValueError, match="port 4 is not one of 0 to 3"):
        control.add(MAX_PORTS, PortState())


@dataclass
class Known:
    """What a driver knows of a port."""

    is_ready: bool = False
    is_console: bool = False
    name: str = ""
    size: tuple[int, ...] | None = None
    host_open: bool = False
    opened: int = field(default=0)
    """How often it was told that the host's end was opened."""


class ControlMachine(RuleBasedStateMachine):
    """A device whose ports change, and a driver that takes messages when it likes, and fails at times."""

    def __init__(self) -> None:
        super().__init__()
        self.control = Control(MAX_PORTS)
        self.known: dict[int, Known] = {}
        self.is_ready = False
        self.unanswered: list[int] = []

    @rule(number=st.integers(0, MAX_PORTS - 1), name=st.text("abc", max_size=3), is_console=st.booleans())
    def plug(self, number: int, name: str, *, is_console: bool) -> None:
        if number not in self.control.ports:
            self.control.add(number, PortState(name, is_console))

    @precondition(lambda self: self.control.ports)
    @rule(data=st.data())
    def unplug(self, data: st.DataObject) -> None:
        self.control.remove(data.draw(st.sampled_from(sorted(self.control.ports))))

    @precondition(lambda self: self.control.ports)
    @rule(data=st.data(), is_open=st.booleans(), size=st.none() | st.tuples(*[st.integers(1, 500)] * 2))
    def change(self, data: st.DataObject, *, is_open: bool, size: tuple[int, int] | None) -> None:
        port = self.control.ports[data.draw(st.sampled_from(sorted(self.control.ports)))]
        port.set_host_open(is_open)
        port.size = size or port.size

    @rule()
    def begin(self) -> None:
        self.control.receive(READY)
        self.is_ready = True
        self.known.clear()
        self.unanswered.clear()

    @rule()
    def reset(self) -> None:
        self.control.reset()
        self.is_ready = False
        self.known.clear()
        self.unanswered.clear()

    @rule(data=st.binary(max_size=12))
    def send_anything_that_is_no_message(self, data: bytes) -> None:
        data = data[:4] + b"\x63" + data[5:]  # an event that there is not
        with pytest.raises(RemoteProtocolError):
            self.control.receive(data)

    @precondition(lambda self: self.unanswered)
    @rule(is_ok=st.booleans())
    def answer(self, *, is_ok: bool) -> None:
        """The driver has set a port up, which it may have been told to forget meanwhile."""
        number = self.unanswered.pop(0)
        told = self.control.receive(say(ControlEvent.PORT_READY, number, int(is_ok)))
        if number in self.known:
            assert told in {None, PortReady(number, is_ok)}
            self.known[number] = Known(is_ready=is_ok and told is not None)

    @precondition(lambda self: any(known.is_ready for known in self.known.values()))
    @rule(data=st.data(), is_open=st.booleans())
    def open(self, data: st.DataObject, *, is_open: bool) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, known in self.known.items() if known.is_ready)))
        told = self.control.receive(say(ControlEvent.PORT_OPEN, number, int(is_open)))
        assert told in {None, GuestOpened(number, is_open)}

    @rule(count=st.integers(1, 8))
    def take(self, count: int) -> None:
        for _ in range(count):
            data = self.control.next_message(ROOM)
            assert data is None or self.is_ready
            if data is not None:
                self.learn(ControlMessage.decode(data))

    def learn(self, message: ControlMessage) -> None:
        """Do what a driver does, which relies on what the specification promises it."""
        number = message.port
        if message.event == ControlEvent.DEVICE_ADD:
            assert number not in self.known
            assert number < MAX_PORTS
            self.known[number] = Known()
            self.unanswered.append(number)
            return
        known = self.known[number]
        match message.event:
            case ControlEvent.DEVICE_REMOVE:
                del self.known[number]
            case ControlEvent.CONSOLE_PORT:
                known.is_console = True
            case ControlEvent.PORT_NAME:
                known.name = message.extra.decode()
            case ControlEvent.PORT_OPEN:
                assert known.host_open != bool(message.value)
                known.host_open = bool(message.value)
            case ControlEvent.RESIZE:
                assert known.is_console
                known.size = RESIZE.unpack(message.extra)
            case _:
                raise AssertionError(f"{message} is nothing that a device sends")

    @invariant()
    def driver_that_is_told_everything_knows_what_is_so(self) -> None:
        if not self.is_ready or self.control.has_message():
            return
        assert set(self.known) == set(self.control.ports)
        for number, known in self.known.items():
            port = self.control.ports[number]
            if known.is_ready:
                assert (known.name, known.is_console) == (port.name, port.is_console)
                assert known.host_open == port.host_open
                assert known.size == (port.size if port.is_console else None)


TestControl = ControlMachine.TestCase
