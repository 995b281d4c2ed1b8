"""What users write goes wrong: lines, ports, sources, scripts, handlers and disks of their own.

The guest gets an error for what it asked, or nothing; the log has the traceback once; all else goes on.
tests/vhost_user/devices/test_i2c_own.py has the chips.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.errors import LocalProtocolError
from protocol.virtio.blk import REQUEST_HEADER, RequestStatus, RequestType
from protocol.virtio.gpio import Direction, GpioRequestType, IrqStatus, IrqType
from protocol.virtio.input import CONFIG_SIZE, EVENT, EVENTQ, STATUSQ, ConfigSelect, Event
from protocol.virtio.input_codes import EventType, Led
from protocol.virtio.net import GUEST_OFFLOADS_SET, ControlClass, ControlStatus
from protocol.virtio.vsock import Operation
from tests.vhost_user.devices import console_driver
from tests.vhost_user.devices.gpio_driver import IRQ, Driver, RefusedError
from tests.vhost_user.devices.net_driver import CONTROLLED, MERGING, PLAIN, begin, frame, give
from tests.vhost_user.devices.net_port import TestPort
from tests.vhost_user.devices.vsock_driver import PORT, attached_guest, received
from tests.vhost_user.frontend import attached
from vhost_user.devices.blk import Blk
from vhost_user.devices.blk_disk import open_disk
from vhost_user.devices.blk_faults import Action, Fault
from vhost_user.devices.console import Console
from vhost_user.devices.console_options import PortOptions
from vhost_user.devices.gpio import Gpio
from vhost_user.devices.gpio_chip import LineError
from vhost_user.devices.gpio_simulation import SimulatedChip, SimulatedLine
from vhost_user.devices.input import Input
from vhost_user.devices.input_player import InputDevices, Player
from vhost_user.devices.input_reports import Reports
from vhost_user.devices.input_script import ScriptError, Step
from vhost_user.devices.input_simulation import Keyboard
from vhost_user.devices.net import Net
from vhost_user.devices.net_impaired import ImpairedPort
from vhost_user.devices.net_impairments import Impairments
from vhost_user.devices.net_pcap import Capture, CapturedPort
from vhost_user.devices.vsock import Vsock
from vhost_user.frontend.connection import BackendError
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from vhost_user.devices.blk_requests import Request
    from vhost_user.devices.console_port import Port as ConsolePort
    from vhost_user.devices.net_host import Receiver

SECONDS = 60


class Mistake(Exception):  # noqa: N818 -- what it is
    """What users' code raises here."""


def tracebacks(caplog: pytest.LogCaptureFixture) -> int:
    """Return how often a traceback was logged."""
    return caplog.text.count("Traceback (most recent call last)")


# Lines


class OwnChip(SimulatedChip):
    """Two lines, the second of which goes wrong: raises `error`, or returns `returns`."""

    def __init__(self, error: Exception | None = None, returns: object = 0) -> None:
        super().__init__([SimulatedLine("good"), SimulatedLine("bad")])
        self.error = error
        self.returns = returns

    async def value(self, line: int) -> int:
        return await super().value(line) if line == 0 else await self.wrong()

    async def direction(self, line: int) -> Direction:
        return await super().direction(line) if line == 0 else await self.wrong()

    async def watch(self, line: int, kind: IrqType) -> int:
        return await super().watch(line, kind) if line == 0 else await self.wrong()

    async def refresh(self, line: int) -> None:
        if line:
            await self.wrong()

    async def wrong(self) -> Any:
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # anew, as one that is kept keeps its frames
        if self.returns is ...:
            await trio.sleep_forever()
        return self.returns


@pytest.mark.parametrize(
    "error", [Mistake("in value"), ExceptionGroup("of a nursery", [Mistake("in value")])]
)
async def test_line_that_raises_gets_the_guest_an_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with driving(Gpio(OwnChip(error)), plus=IRQ) as front:
        driver = await Driver.start(front)
        for _ in range(20):
            with pytest.raises(RefusedError):
                await driver.get(1)
        await driver.use(0, Direction.IN)
        assert await driver.get(0) == 0
    assert "the chip OwnChip failed: the guest gets an error. This is logged once." in caplog.messages
    assert "Mistake: in value" in caplog.text
    assert len(caplog.records) == 1


async def test_line_error_is_no_failure_in_a_group_either(caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Gpio(OwnChip(ExceptionGroup("", [LineError("what is not")]))), plus=IRQ) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
    assert caplog.messages == ["the guest gets an error for what is not"]


@pytest.mark.parametrize("returns", [2, -1, None, "1", 300, 0.5])
async def test_level_or_direction_that_cannot_be(returns: object, caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Gpio(OwnChip(returns=returns)), plus=IRQ) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
        if returns != 2:  # which is Direction.IN
            with pytest.raises(RefusedError):
                await driver.ask(GpioRequestType.GET_DIRECTION, 1)
        await driver.use(0, Direction.IN)
    assert tracebacks(caplog) >= 1


async def test_line_that_never_answers(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    async with driving(Gpio(OwnChip(returns=...)), plus=IRQ, patience=1000) as front:
        driver = await Driver.start(front)
        with pytest.raises(RefusedError):
            await driver.get(1)
        await driver.use(0, Direction.IN)
    assert "TimeoutError: it has not returned within 10 s, and was cancelled" in caplog.text


async def test_interrupt_whose_line_fails_when_it_is_unmasked(caplog: pytest.LogCaptureFixture) -> None:
    chip = OwnChip(returns=0)
    async with driving(Gpio(chip), plus=IRQ) as front:
        driver = await Driver.start(front)
        await driver.use(1, Direction.IN)
        await driver.enable(1, IrqType.LEVEL_HIGH)
        chip.error = Mistake("in refresh")
        buffer = driver.unmask(1)
        assert await driver.are_held(buffer)
        await chip.lines[1].set(1)
        assert await driver.interrupt(buffer) is IrqStatus.VALID
    assert "Mistake: in refresh" in caplog.text


@pytest.mark.parametrize("ends", [True, False])
async def test_chip_whose_run_is_over_keeps_its_lines(ends: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Short(OwnChip):
        async def run(self) -> None:
            if not ends:
                raise Mistake("in run")

        def reset(self) -> None:
            super().reset()
            raise Mistake("in reset")

        def close(self) -> None:
            raise Mistake("in close")

    chip = Short()
    with Gpio(chip) as device:
        async with driving(device, plus=IRQ) as front:
            driver = await Driver.start(front)
            buffer = await driver.watch(0, IrqType.EDGE_RISING)
            await chip.lines[0].set(1)
            assert await driver.interrupt(buffer) is IrqStatus.VALID
    assert ("Mistake: in run" in caplog.text) is not ends
    assert "Mistake: in reset" in caplog.text
    assert "Mistake: in close" in caplog.text


# Ports of a console


class OwnHost:
    """A host's end that fails as soon as it is given something."""

    async def run(self, port: ConsolePort) -> None:
        port.host_opened()
        await port.until_output()
        raise Mistake("in run")

    def hang_up(self) -> bool:
        return False

    def close(self) -> None:
        raise Mistake("in close")


class OwnPort(PortOptions):
    """A port with that at its end."""

    def open(self) -> OwnHost:
        return OwnHost()


async def test_host_side_that_fails_is_closed_and_the_other_ports_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Console() as console:
        console.plug(1, OwnPort("own"))
        other = console.add_port("other")
        async with console_driver.driving(console) as driver:
            await driver.begin()
            for number in (1, 2):
                await driver.start_port(number)
            own = console.ports["own"]
            with own.events() as events:
                await driver.set_up(1, 2)
                await driver.set_up(2, 1)
                await driver.open(1)
                await driver.send(1, b"hello")
                with trio.fail_after(SECONDS):
                    while own.port.state.host_open:
                        assert (await anext(events)).name in {"guest", "host"}
                await driver.open(2)
                await driver.send(2, b"hello")
                assert await other.expect("hello") == "hello"
    assert "the host's end of port own failed: it is closed. This is logged once." in caplog.messages
    assert "Mistake: in run" in caplog.text
    assert "Mistake: in close" in caplog.text


# Input


class OwnKeyboard(Keyboard):
    """One with mistakes."""

    def take_status(self, event: Event) -> None:
        raise Mistake("in take_status")

    async def run(self) -> None:
        raise Mistake("in run")

    async def play(self) -> None:
        raise Mistake("in play")


async def test_source_that_fails_leaves_the_device_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    keyboard = OwnKeyboard()
    with Input(keyboard) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run_host)
            async with driving(device) as front:
                status = await front.start_queue(STATUSQ)
                for _ in range(20):
                    await status.request(Event(EventType.LED, Led.CAPSL, 1).encode())
                events = await front.start_queue(EVENTQ)
                buffer = events.submit(EVENT.size)
                keyboard.reports.post([Event(EventType.KEY, 30, 1)])
                assert Event.decode(await events.wait(buffer)).code == 30
            nursery.cancel_scope.cancel()
    assert "the input source OwnKeyboard failed: what the guest wants is not done. This is logged once." in (
        caplog.messages
    )
    assert "Mistake: in run" in caplog.text
    assert tracebacks(caplog) == 2


async def test_description_that_is_none(caplog: pytest.LogCaptureFixture) -> None:
    keyboard = Keyboard()
    keyboard.description = dataclasses.replace(keyboard.description, events={EventType.KEY: {1 << 20}})  # type: ignore[dict-item]
    async with driving(Input(keyboard)) as front:
        await front.set_config(0, bytes([ConfigSelect.EV_BITS, EventType.KEY]))
        config = await front.get_config(CONFIG_SIZE)
        assert config == bytes([ConfigSelect.EV_BITS, EventType.KEY]).ljust(CONFIG_SIZE, b"\0")
        await front.set_config(0, bytes([ConfigSelect.ID_NAME, 0]))
        assert b"keyboard" in await front.get_config(CONFIG_SIZE)
    assert "the guest's driver is told of nothing" in caplog.text


def test_event_that_is_none_is_refused_to_who_posts_it() -> None:
    reports = Reports()
    with pytest.raises(LocalProtocolError, match="does not fit an event"):
        reports.post([Event(EventType.KEY, 1 << 16, 1)])
    assert len(reports) == 0


class OwnScript:
    """Steps of which one is refused, and one fails."""

    def __init__(self, keyboard: OwnKeyboard, done: list[int]) -> None:
        self.keyboard = keyboard
        self.done = done

    async def steps(self) -> AsyncGenerator[Step, None]:
        async def note() -> None:
            self.done.append(len(self.done))

        async def refuse() -> None:
            raise ScriptError("not so")

        for line, action in enumerate([note, refuse, note, self.keyboard.play, note], 1):
            yield Step(line, action)

    def close(self) -> None:
        pass


async def test_script_ends_at_the_step_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    keyboard, done = OwnKeyboard(), list[int]()
    keyboard.reports.ready.set()
    player = Player(OwnScript(keyboard, done), InputDevices([keyboard]))
    await player.run()
    assert done == [0, 1]
    assert "line 4 of the script failed: it ends here. This is logged once." in caplog.messages
    assert tracebacks(caplog) == 1


# Handlers of a socket device


async def test_handler_that_fails_resets_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        data = await received(stream, 1)
        if data == b"!":
            raise Mistake("in handle")
        await stream.send_all(data.upper())

    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:
        listener = device.listen(PORT)
        nursery.start_soon(listener.serve, handle)
        kept = await guest.port(99, PORT).connected()
        for port in range(100, 110):
            bad = await guest.port(port, PORT).connected()
            await bad.send(Operation.RW, b"!")
            await bad.expect(Operation.RST)
        await kept.send(Operation.RW, b"a")
        await kept.expect_data(b"A")
        await kept.expect(Operation.SHUTDOWN)
        listener.close()  # which ends serve()
    assert caplog.messages == [
        f"the handler of port {PORT} failed: its connection is reset. This is logged once."
    ]


async def test_guest_that_goes_is_no_failure_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def flood(stream: trio.SocketStream) -> None:
        try:
            while True:
                await stream.send_all(bytes(1 << 20))
        finally:
            ended.set()

    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:
        with device.listen(PORT) as listener:
            nursery.start_soon(listener.serve, flood)
            end = await guest.port(99, PORT).connected()
            await end.send(Operation.RST)
            with trio.fail_after(SECONDS):
                await ended.wait()
    assert not caplog.records


# Ports of a network card


class OwnPort2(TestPort):
    """Fails where it is told to."""

    def __init__(self, where: str = "", *, returns: object = True) -> None:
        super().__init__()
        self.where = where
        self.returns = returns
        self.begun = 0

    def send(self, pair: int, buffers: Sequence[memoryview], length: int) -> bool:
        self.fail("send")
        if self.returns is not True:
            return self.returns  # type: ignore[return-value]  # as its author has it
        return super().send(pair, buffers, length)

    def flush(self, pair: int) -> None:
        self.fail("flush")

    async def until_sendable(self, pair: int) -> None:
        self.fail("until_sendable")

    async def receive(self, pair: int, receiver: Receiver) -> None:
        self.begun += 1
        if self.begun == 1:
            self.fail("receive")
            if self.where == "return":
                return
        await super().receive(pair, receiver)

    async def run(self) -> None:
        self.fail("run")

    def set_offloads(self, features: Any) -> None:
        self.fail("set_offloads")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise Mistake(f"in {where}")


@pytest.mark.parametrize(
    ("port", "told"),
    [
        (OwnPort2("send"), "Mistake: in send"),
        (OwnPort2(returns=None), "send() has returned None: True is for a frame that it is done with"),
        (OwnPort2("until_sendable", returns=False), "Mistake: in until_sendable"),
    ],
)
async def test_frame_is_dropped_that_the_port_fails_to_send(
    port: OwnPort2, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        for _ in range(20):
            assert await queue.exchange([frame(60)], []) == []
        port.where, port.returns = "", True
        assert await queue.exchange([frame(61)], []) == []
    assert (device.from_guest.dropped, device.from_guest.frames) == (20, 1)
    assert port.sent == [(0, frame(61))]
    assert told in caplog.text
    assert caplog.text.count("failed: ") == 1


async def test_port_that_fails_to_flush(caplog: pytest.LogCaptureFixture) -> None:
    port = OwnPort2("flush")
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, PLAIN, 1)
        assert await queue.exchange([frame(60)], []) == []
        assert await queue.exchange([frame(60)], []) == []
    assert len(port.sent) == 2
    assert tracebacks(caplog) == 1


@pytest.mark.parametrize(
    ("where", "told"),
    [("receive", "Mistake: in receive"), ("return", "receive() has returned, which it must")],
)
async def test_port_that_fails_to_receive_is_asked_again(
    where: str, told: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    port = OwnPort2(where)
    async with attached(Net(port)) as front:
        (queue,) = await begin(front, MERGING, 0)
        queue.submit([], [2000])
        assert give(await port.until_receiving(), frame(300))
        await queue.wait()
    assert port.begun == 2
    assert told in caplog.text


async def test_port_that_cannot_set_offloads_refuses_the_guests_command(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = OwnPort2()
    async with attached(Net(port)) as front:
        (control,) = await begin(front, CONTROLLED, 2)
        port.where = "set_offloads"
        command = bytes([ControlClass.GUEST_OFFLOADS, GUEST_OFFLOADS_SET]) + bytes(8)
        assert await control.exchange([command], [1]) == [bytes([ControlStatus.ERR])]
        port.where = ""
        assert await control.exchange([command], [1]) == [bytes([ControlStatus.OK])]
    assert "Mistake: in set_offloads" in caplog.text


class PortOfALostCard(TestPort):
    """Looks at the host each time that it is asked, where there is nothing any more."""

    mtu_says: object = None

    @property
    def link_up(self) -> bool:  # type: ignore[override]
        raise FileNotFoundError("no carrier")

    @property
    def mtu(self) -> Any:  # type: ignore[override]
        if self.mtu_says is None:
            raise FileNotFoundError("no mtu")
        return self.mtu_says


async def test_port_that_cannot_tell_of_itself_is_one_without_a_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = PortOfALostCard()
    device = Net(port)
    async with attached(device) as front:
        (queue,) = await begin(front, PLAIN, 1)
        for _ in range(3):
            assert await queue.exchange([frame(60)], []) == []
    assert (device.from_guest.dropped, port.sent) == (3, [])
    for port.mtu_says in (70000, "1500"):
        assert device.read_config(10, 2) == bytes(2)
    assert "failed: its link is down" in caplog.text
    assert caplog.text.count("FileNotFoundError: no carrier") == 1
    assert "an MTU is a number up to 65535, and not 70000" in caplog.text


@pytest.mark.parametrize("kind", ["impaired", "captured"])
async def test_port_within_another_fails_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """Its own run() is over, and a frame that it fails to send is lost; what is around it goes on."""
    port = OwnPort2("run")
    capture = Capture(str(tmp_path / "file.pcapng"), ["port"])
    outer = (
        ImpairedPort(port, from_guest=Impairments(delay=0.1))
        if kind == "impaired"
        else CapturedPort(port, capture)
    )
    with capture, Net(outer) as device:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run_host)
            await wait_all_tasks_blocked()
            async with attached(device) as front:
                (queue,) = await begin(front, PLAIN, 1)
                port.where = "send"
                assert await queue.exchange([frame(60)], []) == []
                await trio.sleep(1)
                port.where = ""
                assert await queue.exchange([frame(61)], []) == []
                await trio.sleep(1)
                assert [sent for _, sent in port.sent] == [frame(61)]
            nursery.cancel_scope.cancel()
    assert "Mistake: in run" in caplog.text
    assert "Mistake: in send" in caplog.text


# Disks


class OwnDisk:
    """Around a file; raises where it is told to."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self._file = open_disk(str(path))
        self.where = ""

    def __getattr__(self, name: str) -> Any:
        if name == self.where:
            raise Mistake(f"in {name}")
        return getattr(self._file, name)


class OwnFault(Fault):
    """A rule that goes wrong."""

    def concerns(self, request: Request) -> bool:
        raise Mistake("in concerns")


@pytest.fixture
def disk(tmp_path: Path) -> OwnDisk:
    return OwnDisk(tmp_path / "disk")


@pytest.mark.parametrize("where", ["read_now", "size"])
async def test_request_that_the_disk_fails_at(
    where: str, disk: OwnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    header = REQUEST_HEADER.pack(RequestType.IN, 0, 0)
    with Blk(disk) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            disk.where = where
            answers = [await queue.request(header, 513) for _ in range(5)]
            disk.where = ""
            assert (await queue.request(header, 513))[-1] == RequestStatus.OK
    expected = RequestStatus.OK if where == "read_now" else RequestStatus.IOERR  # read() does it
    assert {answer[-1] for answer in answers} == {expected}
    assert f"Mistake: in {where}" in caplog.text


async def test_request_that_the_disk_fails_at_in_a_thread(
    disk: OwnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with Blk(disk) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            disk.where = "flush"
            for _ in range(20):
                answer = await queue.request(REQUEST_HEADER.pack(RequestType.FLUSH, 0, 0), 1)
                assert answer == bytes([RequestStatus.IOERR])
            assert (await queue.request(REQUEST_HEADER.pack(RequestType.IN, 0, 0), 513))[
                -1
            ] == RequestStatus.OK
    assert caplog.messages == [
        "the disk OwnDisk failed: the guest's request gets an error. This is logged once."
    ]


async def test_disk_that_cannot_be_asked(disk: OwnDisk, caplog: pytest.LogCaptureFixture) -> None:
    with Blk(disk) as device:
        async with driving(device) as front:
            disk.where = "block_sizes"
            with pytest.raises(BackendError):
                await front.get_config(60)
            disk.where = "measure"
            device.look()
            disk.where = ""
            assert await front.get_config(8) == struct.pack("<Q", 8)
            disk.where = "close"
    disk.where = ""
    disk.close()
    for name in ("block_sizes", "measure", "close"):
        assert f"Mistake: in {name}" in caplog.text


async def test_fault_that_goes_wrong(disk: OwnDisk, caplog: pytest.LogCaptureFixture) -> None:
    with Blk(disk, faults=[OwnFault(Action.STUCK)]) as device:
        async with driving(device) as front:
            queue = await front.start_queue()
            header = REQUEST_HEADER.pack(RequestType.IN, 0, 0)
            assert (await queue.request(header, 513))[-1] == RequestStatus.IOERR
            device.faults.set([])
            assert (await queue.request(header, 513))[-1] == RequestStatus.OK
    assert "Mistake: in concerns" in caplog.text
