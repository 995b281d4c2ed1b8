"""The host's side of the socket device at UNIX sockets, its options, and what can be changed by hand."""

from __future__ import annotations

import os
import resource
import socket
import stat
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.vsock import HOST_CID, Operation, Shutdown
from tests.vhost_user.devices.vsock.driver import (
    PORT,
    SECONDS,
    Guest,
    attached_guest,
    running,
)
from vhost_user.devices.vsock import host as vsock_host
from vhost_user.devices.vsock.connection_table import FIRST_PORT
from vhost_user.devices.vsock.device import Vsock
from vhost_user.devices.vsock.host import GREETING_SECONDS, UnixSockets, parse_greeting
from vhost_user.devices.vsock.stream import ANSWER_SECONDS
from vhost_user.simulation.calls import CallError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def path(directory: Path) -> str:
    """Where programs connect to the guest."""
    return str(directory / "vsock")


@asynccontextmanager
async def guest_at(path: str) -> AsyncIterator[Guest]:
    async with attached_guest(Vsock(host=UnixSockets(path, 100))) as guest:
        yield guest


@asynccontextmanager
async def listening(path: str, *, backlog: int = 10) -> AsyncIterator[trio.SocketListener]:
    """A program that listens for the guest."""
    with trio.socket.socket(socket.AF_UNIX) as sock:
        await sock.bind(path)
        sock.listen(backlog)
        yield trio.SocketListener(sock)


async def line_of(stream: trio.SocketStream) -> bytes:
    """Return what comes up to the end of a line, and not a byte more."""
    line = b""
    while not line.endswith(b"\n") and (byte := await stream.receive_some(1)):
        line += byte
    return line


async def test_program_connects_to_the_guest(path: str) -> None:
    async with guest_at(path) as guest, await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"CONNECT 5000\nfirst words")
        end = await guest.accepted()
        assert end.addresses == (3, HOST_CID, PORT, FIRST_PORT)
        assert await line_of(stream) == b"OK %d\n" % FIRST_PORT
        await end.expect_data(b"first words")
        await end.send(Operation.RW, b"hello")
        assert await stream.receive_some() == b"hello"


async def test_greeting_may_come_in_pieces(path: str) -> None:
    async with guest_at(path) as guest, await trio.open_unix_socket(path) as stream:
        for piece in (b"CON", b"NECT 50", b"00", b"\nx"):
            await stream.send_all(piece)
            await wait_all_tasks_blocked()
        end = await guest.accepted()
        await end.expect_data(b"x")


async def test_programs_have_ports_of_their_own(path: str) -> None:
    async with guest_at(path) as guest:
        ports = set()
        for _ in range(3):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(b"CONNECT 5000\n")
                end = await guest.accepted()
                ports.add(await line_of(stream))
            (header,) = await end.expect(Operation.SHUTDOWN)
            assert header.flags == Shutdown.BOTH
        assert len(ports) == 3


@pytest.mark.parametrize(
    "greeting",
    [
        *(b"\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT -1\n", b"CONNECT 4294967295\n", b"LISTEN 5\n"),
        *(b"CONNECT " + b"1" * 100 + b"\n", b"x" * 100, b"CONNECT 5 6\n", bytes(32)),
    ],
)
async def test_program_that_says_something_else_is_left(path: str, greeting: bytes) -> None:
    async with guest_at(path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(greeting)
        # It is reset where what it said was not read to its end.
        with trio.fail_after(SECONDS), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""


async def test_program_that_leaves_without_a_word(path: str) -> None:
    async with guest_at(path) as guest:
        for said in (b"", b"CONN"):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(said)
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b"CONNECT 5000\n")
            await guest.accepted()


async def test_program_that_says_nothing_is_left_after_a_while(path: str, autojump_clock: MockClock) -> None:
    async with guest_at(path), await trio.open_unix_socket(path) as stream:
        began = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - began >= GREETING_SECONDS


async def test_program_is_left_where_the_guest_refuses(path: str) -> None:
    async with guest_at(path) as guest, await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"CONNECT 5000\n")
        header, _ = await guest.packet()
        await guest.send(header.answer(Operation.RST))
        assert await stream.receive_some() == b""


async def test_program_is_left_where_there_is_no_guest(path: str) -> None:
    device = Vsock(host=UnixSockets(path, 100))
    async with running(device), await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"CONNECT 5000\n")
        assert await stream.receive_some() == b""


async def test_guest_connects_to_a_program(path: str) -> None:
    async with guest_at(path) as guest, listening(f"{path}_{PORT}") as listener:
        end = await guest.port(1000, PORT).connected()
        async with await listener.accept() as stream:
            await end.send(Operation.RW, b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.send_all(b"goodbye")
            await end.expect_data(b"goodbye")


@pytest.mark.parametrize("what", ["nothing", "file", "dead"])
async def test_guest_is_refused_where_no_program_listens(path: str, what: str) -> None:
    if what == "file":
        with open(f"{path}_{PORT}", "w"):  # noqa: PTH123, ASYNC230 -- a name, no path
            pass
    elif what == "dead":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{path}_{PORT}")
    async with guest_at(path) as guest:
        end = guest.port(1000, PORT)
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)


async def test_guest_is_refused_at_the_limit_of_open_files_and_served_later(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with guest_at(path) as guest, listening(f"{path}_{PORT}"):
        with no_more_files():
            for port in (1000, 1001):
                end = guest.port(port, PORT)
                await end.send(Operation.REQUEST)
                await end.expect(Operation.RST)
        await guest.port(1002, PORT).connected()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == (
        "guest 3 has a connection refused: Too many open files; raise the limit of open files (ulimit -n);"
        " this is logged once"
    )


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_program_that_is_slow_to_accept_is_waited_for(path: str) -> None:
    async with guest_at(path) as guest, listening(f"{path}_{PORT}", backlog=0) as listener:
        ends = [guest.port(number, PORT) for number in range(5)]
        for end in ends:
            await end.send(Operation.REQUEST)
        answered = [(await guest.packet())[0].dst_port]
        streams = []
        for _ in ends:
            streams.append(await listener.accept())
        for _ in ends[1:]:
            header, _ = await guest.packet()
            assert header.op == Operation.RESPONSE
            answered.append(header.dst_port)
        assert set(answered) == set(range(5))
        for stream in streams:
            await stream.aclose()


async def test_guest_that_waits_for_a_program_may_give_up(path: str) -> None:
    """The program never hears of that connection: what it accepts next is the one after."""
    async with guest_at(path) as guest, listening(f"{path}_{PORT}", backlog=0) as listener:
        first = await guest.port(1, PORT).connected()
        second, third = guest.port(2, PORT), guest.port(3, PORT)
        await second.send(Operation.REQUEST)
        await third.send(Operation.REQUEST)
        await wait_all_tasks_blocked()
        await second.send(Operation.RST)
        async with await listener.accept():
            await third.expect(Operation.RESPONSE)
        await first.expect(Operation.SHUTDOWN)
        async with await listener.accept() as stream:
            await stream.send_all(b"x")
            await third.expect_data(b"x")


async def test_those_that_wait_for_a_program_come_in_their_order(path: str) -> None:
    async with guest_at(path) as guest, listening(f"{path}_{PORT}", backlog=0) as listener:
        await guest.port(0, PORT).connected()
        for number in range(1, 20):
            await guest.port(number, PORT).send(Operation.REQUEST)
        answered = []
        async with AsyncExitStack() as stack:
            for _ in range(1, 20):
                await stack.enter_async_context(await listener.accept())
                answered.append((await guest.packet())[0].dst_port)
            assert answered == list(range(1, 20))


async def test_many_that_wait_for_a_program_ask_no_more_often_than_one(
    path: str, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    connect = socket.socket.connect

    def counted(sock: socket.socket, address: str) -> None:
        tried.append(address)
        connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    async with guest_at(path) as guest, listening(f"{path}_{PORT}", backlog=0):
        await guest.port(0, PORT).connected()
        for number in range(1, 50):
            await guest.port(number, PORT).send(Operation.REQUEST)
        await wait_all_tasks_blocked()
        before = len(tried)
        for _ in range(10):
            mock_clock.jump(vsock_host._CONNECT_RETRY_SECONDS)
            await wait_all_tasks_blocked()
        assert len(tried) - before == 10


async def test_program_that_never_accepts(
    path: str, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_host, "_CONNECT_RETRY_SECONDS", 5.0)
    mock_clock.autojump_threshold = 0.002  # only once the kernel, too, has nothing more to tell
    async with guest_at(path) as guest, listening(f"{path}_{PORT}", backlog=0):
        await guest.port(1, PORT).connected()
        second = guest.port(2, PORT)
        began = trio.current_time()
        await second.send(Operation.REQUEST)
        await second.expect(Operation.RST)
        assert trio.current_time() - began >= ANSWER_SECONDS


async def test_socket_is_gone_in_the_end(path: str) -> None:
    async with guest_at(path):
        assert stat.S_ISSOCK(os.stat(path).st_mode)  # noqa: PTH116 -- a name, no path
    assert not os.path.lexists(path)


# By hand


async def test_connections_are_listed_and_reset(path: str) -> None:
    device = Vsock(host=UnixSockets(path, 100))
    async with attached_guest(device) as guest:
        rules = device.simulation
        with device.listen(PORT) as listener, rules.events() as events:
            end = await guest.port(1000, PORT).connected()
            async with await listener.accept() as stream:
                assert await rules.find_call("connections").make({}) == ["2:5000-1000 open"]
                with pytest.raises(CallError, match="there is no connection '2:5000-1001'"):
                    await rules.find_call("reset").make({"connection": "2:5000-1001"})
                await rules.find_call("reset").make({"connection": "2:5000-1000"})
                await end.expect(Operation.RST)
                assert await stream.receive_some() == b""
            told = [await anext(events) for _ in range(2)]
    assert [(event.name, event.data) for event in told] == [
        ("opened", {"connection": "2:5000-1000"}),
        ("closed", {"connection": "2:5000-1000"}),
    ]


async def test_connection_that_does_not_come_about_is_told_as_refused() -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        with device.simulation.events() as events:
            end = guest.port(1000, PORT)
            await end.send(Operation.REQUEST)
            await end.expect(Operation.RST)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, device)
                asked, _ = await guest.packet()
                await guest.send(asked.answer(Operation.RST))
            told = [await anext(events) for _ in range(2)]
    assert [(event.name, event.data) for event in told] == [
        ("refused", {"connection": "2:5000-1000"}),
        ("refused", {"connection": f"2:{FIRST_PORT}-{PORT}"}),
    ]


async def refused(device: Vsock) -> None:
    with pytest.raises(ConnectionRefusedError):
        await device.connect(PORT)


@pytest.mark.parametrize("port", [-1, (1 << 32) - 1])
@pytest.mark.parametrize("name", ["refuse", "ignore", "allow"])
async def test_rule_for_what_is_no_port_is_refused(name: str, port: int) -> None:
    with Vsock() as device, pytest.raises(ValueError, match=f"{port} is not a port: give 0 to 4294967294"):
        await device.simulation.find_call(name).make({"port": port})


@pytest.mark.parametrize("port", [-1, (1 << 32) - 1])
async def test_what_is_no_port_is_refused_before_the_guest_hears_of_it(port: int) -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        with pytest.raises(ValueError, match=f"{port} is not a port"):
            device.listen(port)
        with pytest.raises(ValueError, match=f"{port} is not a port"):
            await device.connect(port)
        with device.listen(PORT) as listener:
            await guest.port(1000, PORT).connected()
            await (await listener.accept()).aclose()


async def test_port_is_refused_ignored_and_allowed(autojump_clock: MockClock) -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        call = device.simulation.find_call
        with device.listen(PORT) as listener:
            for what, seconds in (("refuse", 0), ("ignore", ANSWER_SECONDS)):
                await call(what).make({"port": PORT})
                end = guest.port(1000, PORT)
                began = trio.current_time()
                await end.send(Operation.REQUEST)
                await end.expect(Operation.RST)
                assert seconds <= trio.current_time() - began <= seconds + 1
            await call("allow").make({"port": PORT})
            await guest.port(1000, PORT).connected()
            await (await listener.accept()).aclose()


# In the program itself


async def test_listener_that_is_closed() -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        listener = device.listen(PORT)
        with pytest.raises(ValueError, match="somebody listens at port 5000 already"):
            device.listen(PORT)
        await guest.port(1, PORT).connected()
        await listener.aclose()
        (_,) = await guest.port(1, PORT).expect(Operation.SHUTDOWN)
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        end = guest.port(2, PORT)
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)


async def test_connecting_may_be_cancelled() -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.connect, PORT)
            header, _ = await guest.packet()
            nursery.cancel_scope.cancel()
        end = guest.port(header.dst_port, header.src_port)
        await end.send(Operation.RESPONSE)
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH


# Options


def test_greetings() -> None:
    assert parse_greeting(b"CONNECT 0\n") == 0
    assert parse_greeting(b"connect 4294967294\r\n") == 0xFFFF_FFFE
    assert parse_greeting(b"CONNECT 5") is None


def test_socket_that_a_dead_process_left_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    UnixSockets(path, 1).close()
