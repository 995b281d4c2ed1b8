"""The console device: its queues, its configuration space, and drivers that do it wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import Config, ConfigChange, GetConfig, ResetDevice, SetConfig
from protocol.virtio.console import (
    CONTROL_RECEIVEQ,
    CONTROL_TRANSMITQ,
    ConsoleConfig,
    ControlEvent,
    ControlMessage,
    receiveq,
    transmitq,
)
from tests.vhost_user.devices.console.driver import driving
from tests.vhost_user.raw_frontend import DEFAULT_FEATURES
from vhost_user.devices.console.descriptions import PortDescription
from vhost_user.devices.console.device import Console

if TYPE_CHECKING:
    from tests.vhost_user.devices.console.driver import Driver


async def config(driver: Driver) -> ConsoleConfig:
    return ConsoleConfig.decode((await driver.frontend.ask(Config, GetConfig(0, 12))).data)


async def test_console_in_both_directions() -> None:
    console = Console()
    part = console.add_port("console", "none,size=80x25", console=True)
    async with driving(console) as driver:
        await driver.begin()
        assert await driver.set_up(0, 4) == [
            "CONSOLE_PORT port=0 value=1",
            "PORT_NAME port=0 value=1 636f6e736f6c65",
            "PORT_OPEN port=0 value=1",
            "RESIZE port=0 value=0 50001900",
        ]
        await driver.open(0)
        await driver.send(0, b"login: ")
        assert await part.expect("login: ") == "login: "
        part.send("root\n")
        assert await driver.receive(0) == b"root\n"


async def test_input_waits_until_the_guest_has_the_port_open() -> None:
    console = Console()
    part = console.add_port("agent")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        part.send("early ")
        driver.queues[receiveq(1)].submit([], [64])
        await wait_all_tasks_blocked()
        assert driver.queues[receiveq(1)].collect() == []
        await driver.open(1)
        assert await driver.queues[receiveq(1)].wait() == [[b"early "]]
        part.send("more than fits")
        assert await driver.receive(1, 4) == b"more"
        assert await driver.receive(1) == b" than fits"


async def test_without_multiport_there_is_but_port_0() -> None:
    console = Console()
    part = console.add_port("console", console=True)
    other = console.add_port("agent")
    async with driving(console, DEFAULT_FEATURES) as driver:
        await driver.start_port(0)
        assert part.port.state.guest_open
        assert not other.port.state.guest_open
        part.send("root\n")
        assert await driver.receive(0) == b"root\n"
        await driver.send(0, b"# ")
        assert part.read() == "# "
    assert not part.port.state.guest_open


async def test_port_0_that_is_plugged_in_later_is_open_without_multiport() -> None:
    """Such a driver has its queues from the start, and says nothing of ports."""
    console = Console()
    async with driving(console, DEFAULT_FEATURES) as driver:
        await driver.start_port(0)
        for _ in range(2):
            part = console.add_port("console", console=True)
            part.send("root\n")
            assert await driver.receive(0) == b"root\n"
            await console.remove_port("console")


async def test_configuration_space_follows_the_size_of_port_0() -> None:
    console = Console(max_ports=5)
    part = console.add_port("console", console=True)
    async with driving(console) as driver, trio.open_nursery() as nursery:
        assert await config(driver) == ConsoleConfig(0, 0, 5)
        await driver.frontend.open_channel(nursery)
        await driver.start_port(0)
        part.resize(132, 43)
        (told,) = await driver.frontend.until_asked()
        assert isinstance(told, ConfigChange)
        assert await config(driver) == ConsoleConfig(132, 43, 5)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("offset", "data", "shown"),
    [
        (8, b"A\0\0\0", "A"),
        (8, b"A", "A"),
        (8, b"\0\0\0\0", "\0"),
        (0, bytes(8) + b"A\0\0\0", "A"),  # as QEMU does, whatever field was written
        (0, bytes(12), ""),
    ],
)
async def test_emergency_write_is_put_out(offset: int, data: bytes, shown: str) -> None:
    console = Console()
    part = console.add_port("console", console=True)
    async with driving(console) as driver:
        await driver.frontend.request(SetConfig(offset, data))
        assert part.read() == shown


@pytest.mark.parametrize(("offset", "size"), [(0, 4), (4, 4), (9, 3), (12, 1)])
async def test_nothing_else_can_be_written(caplog: pytest.LogCaptureFixture, offset: int, size: int) -> None:
    console = Console()
    part = console.add_port("console", console=True)
    async with driving(console) as driver:
        reply = await driver.frontend.try_request(SetConfig(offset, b"A" * size))
        assert reply is not None
        assert reply.failed
        assert part.read() == ""
    assert "emerg_wr alone is written" in caplog.text


async def test_emergency_write_without_a_console_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with driving(Console()) as driver:
        await driver.frontend.request(SetConfig(8, b"A"))
    assert "there is no console" in caplog.text


async def test_emergency_writes_are_dropped_where_nobody_reads() -> None:
    """A guest does not wait for them, so they are the one output that may not wait for a reader."""
    console = Console()
    part = console.add_port("console", "none,full=block,backlog=4", console=True)
    async with driving(console) as driver:
        for byte in b"too much":
            await driver.frontend.request(SetConfig(8, bytes([byte])))
        assert part.read() == "too "
        await driver.frontend.request(SetConfig(8, b"A"))
        assert part.read() == "A"


async def test_ports_are_plugged_in_and_out_while_the_guest_runs() -> None:
    console = Console(max_ports=3)
    async with driving(console) as driver:
        await driver.begin()
        with console.simulation.events() as events:
            part = console.add_port("hot")
            assert await driver.set_up(1, 2) == [
                "PORT_NAME port=1 value=1 686f74",
                "PORT_OPEN port=1 value=1",
            ]
            await driver.open(1)
            await driver.send(1, b"hello")
            assert part.read() == "hello"
            await console.remove_port("hot")
            assert await driver.hear() == ["DEVICE_REMOVE port=1 value=0"]
            assert console.ports == {}
            again = console.add_port("other")
            assert await driver.hear() == ["DEVICE_ADD port=1 value=0"]
            await driver.say(ControlEvent.PORT_READY, 1)
            assert await driver.hear() == ["PORT_NAME port=1 value=1 6f74686572"]
            assert await driver.hear() == ["PORT_OPEN port=1 value=1"]
            await driver.open(1)
            again.send("to the other")
            assert await driver.receive(1) == b"to the other"
            happened = [await anext(events) for _ in range(5)]
    assert [(event.name, event.on) for event in happened] == [
        ("added", ""),
        ("guest", "hot"),
        ("removed", ""),
        ("added", ""),
        ("guest", "other"),
    ]


async def test_there_are_no_more_ports_than_room() -> None:
    with Console(max_ports=2) as console:
        console.add_port("one")
        with pytest.raises(ValueError, match="no port is left of 2; start with a larger --max-ports"):
            console.add_port("two")
        console.add_port("console", console=True)
        with pytest.raises(ValueError, match="there is a port one already"):
            console.plug(0, PortDescription("one"))


async def test_guest_waits_until_somebody_reads() -> None:
    """Two buffers fill the backlog; the third waits, and comes as it was once there is room."""
    console = Console()
    part = console.add_port("agent", "none,backlog=8")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        for data in (b"first", b"second", b"third"):
            driver.queues[transmitq(1)].submit([data])
        assert await driver.queues[transmitq(1)].wait(2) == [[], []]
        await wait_all_tasks_blocked()
        assert driver.queues[transmitq(1)].collect() == []
        assert part.read() == "firstsecond"
        assert await driver.queues[transmitq(1)].wait() == [[]]
        assert part.read() == "third"


async def test_stop_leaves_what_waits_for_whoever_starts_again() -> None:
    console = Console()
    part = console.add_port("agent", "none,backlog=1")
    console.drain_seconds = 60
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        await driver.open(1)
        output, incoming = driver.queues[transmitq(1)], driver.queues[receiveq(1)]
        await driver.send(1, b"first")
        output.submit([b"second"])
        incoming.submit([], [64])
        driver.queues[CONTROL_RECEIVEQ].submit([], [64])
        await wait_all_tasks_blocked()
        assert [await queue.stop() for queue in (output, incoming, driver.queues[CONTROL_RECEIVEQ])] == [
            1,
            0,
            3,
        ]
        for queue in (output, incoming, driver.queues[CONTROL_RECEIVEQ]):
            await queue.start()
        part.send("input")
        assert await incoming.wait() == [[b"input"]]
        assert part.read() == "first"
        assert await output.wait() == [[]]
        assert part.read() == "second"


async def test_buffer_that_is_larger_than_a_piece_comes_whole() -> None:
    console = Console()
    part = console.add_port("agent", "none,backlog=1")
    data = bytes(range(256)) * 1024
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        driver.queues[transmitq(1)].submit([data])
        came = b""
        while len(came) < len(data):
            await wait_all_tasks_blocked()
            came += part.read_bytes()
        assert await driver.queues[transmitq(1)].wait() == [[]]
    assert came == data


async def test_unplugged_port_gives_back_what_it_held() -> None:
    console = Console()
    console.add_port("agent", "none,backlog=1")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        await driver.send(1, b"first")
        driver.queues[transmitq(1)].submit([b"second"])
        await wait_all_tasks_blocked()
        await console.remove_port("agent")
        assert await driver.queues[transmitq(1)].wait() == [[]]


async def test_reset_forgets_what_the_driver_was_told() -> None:
    console = Console()
    part = console.add_port("agent")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        await driver.open(1)
        part.send("before")
        with part.events() as events:
            await driver.frontend.request(ResetDevice())
            assert (await anext(events)).data == {"open": False}
        await driver.begin()
        await driver.set_up(1, 2)
        await driver.open(1)
        assert await driver.receive(1) == b"before"


async def test_driver_that_does_it_wrong_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    console = Console()
    part = console.add_port("agent")
    async with driving(console) as driver:
        await driver.begin()
        await driver.set_up(1, 2)
        await driver.start_port(3)
        await driver.open(1)
        control, output, incoming = (
            driver.queues[index] for index in (CONTROL_TRANSMITQ, transmitq(1), receiveq(1))
        )
        for wrong in (b"", b"1234567", ControlMessage(0, 99).encode(), ControlMessage(99, 6, 1).encode()):
            assert await control.exchange([wrong] if wrong else [], [] if wrong else [8]) in ([], [b""])
        assert await control.exchange([], [8]) == [b""]
        assert await output.exchange([], [8]) == [b""]
        assert await incoming.exchange([b"to read"], []) == []
        assert await driver.queues[transmitq(3)].exchange([b"nobody"]) == []
        small = console.add_port("small")
        assert await driver.queues[CONTROL_RECEIVEQ].exchange([], [7]) == [b""]
        assert await driver.queues[CONTROL_RECEIVEQ].exchange([b"to read"], []) == []
        assert await driver.hear() == ["DEVICE_ADD port=2 value=0"]
        for _ in range(2):
            await driver.say(ControlEvent.PORT_READY, 2, 0)
        await driver.send(1, b"still there")
        part.send("as well")
        assert await driver.receive(1) == b"as well"
    assert part.read() == "still there"
    assert not small.port.state.guest_open
    for complaint in (
        "a control message is ignored: 7 bytes are not a control message, of 8",
        "a control message is ignored: event 99 port=0 value=0 is nothing that a driver sends",
        "a control message is ignored: PORT_OPEN port=99 value=1: there are ports from 0 to 7",
        "a buffer for control messages is too small for the next one",
        "a buffer for the input of port 1 has no room",
        "what the guest sends to port 3 has no bytes, or there is no such port",
        "the guest could not set up port 2",
    ):
        assert caplog.text.count(complaint) == 1


async def test_port_can_be_opened_before_there_is_a_guest_and_after_it() -> None:
    console = Console()
    part = console.add_port("agent")
    for _ in range(2):
        async with driving(console) as driver:
            await driver.begin()
            await driver.set_up(1, 2)
            await driver.open(1)
            assert part.port.state.guest_open
        assert not part.port.state.guest_open
