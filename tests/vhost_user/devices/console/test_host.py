"""What a port is on the host: real pseudo-terminals, sockets and files."""

from __future__ import annotations

import os
import socket
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.vhost_user.devices.console.driver import until
from tests.vhost_user.devices.console.ends import resize, running
from vhost_user.devices.console.device import Console
from vhost_user.devices.console.host import FileHost, PtyHost, TcpHost, UnixHost
from vhost_user.devices.console.port import INPUT_LIMIT

if TYPE_CHECKING:
    from trio.testing import MockClock

    from vhost_user.devices.console.port import ConsolePort, HostSide

MIB = 1 << 20


async def given(port: ConsolePort, size: int) -> bytes:
    """Return what comes for the guest, so many bytes."""
    data = b""
    while len(data) < size:
        while not port.has_input:
            await port.changed.park()
        data += port.take_input(size - len(data))
    return data


class Client:
    """A program that has the host's end open: a socket, or a pseudo-terminal's path."""

    def __init__(self, end: socket.socket | str) -> None:
        if isinstance(end, str):
            self.fd = os.open(end, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        else:
            end.setblocking(False)
            self.fd = end.detach()

    async def send(self, data: bytes) -> None:
        while data:
            await trio.lowlevel.wait_writable(self.fd)
            data = data[os.write(self.fd, data) :]

    async def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            await trio.lowlevel.wait_readable(self.fd)
            came = os.read(self.fd, size - len(data))
            assert came
            data += came
        return data

    async def at_its_end(self) -> bool:
        """Wait for something to read; return whether it is the end."""
        await trio.lowlevel.wait_readable(self.fd)
        return not os.read(self.fd, 1)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connected(host: HostSide, directory: Path) -> Client:
    """Return a client of a host side of any kind."""
    if isinstance(host, PtyHost):
        return Client(host.path)
    if isinstance(host, TcpHost):
        return Client(socket.create_connection(("127.0.0.1", host.port)))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(directory / "socket"))
    return Client(client)


@pytest.fixture(params=["pty", "unix", "tcp"])
def host(request: pytest.FixtureRequest, directory: Path) -> HostSide:
    """A host side to which clients come and from which they go. `running()` closes it."""
    if request.param == "pty":
        return PtyHost()
    return UnixHost(str(directory / "socket")) if request.param == "unix" else TcpHost("127.0.0.1", 0)


async def test_one_client_after_the_other(host: HostSide, directory: Path) -> None:
    opened: list[bool] = []
    async with running(host) as port:
        port.callbacks.host_opened = opened.append
        for number in range(3):
            assert not port.state.host_open
            with connected(host, directory) as client:
                await until(lambda: port.state.host_open)
                port.put_output(b"to the host %d" % number)
                assert await client.receive(13) == b"to the host %d" % number
                await client.send(b"to the guest")
                assert await given(port, 12) == b"to the guest"
            await until(lambda: not port.state.host_open)
    assert opened == [True, False] * 3


async def test_bytes_of_any_value_come_as_they_were(host: HostSide, directory: Path) -> None:
    data = bytes(range(256)) * 64
    async with running(host) as port:
        with connected(host, directory) as client:
            port.put_output(data)
            assert await client.receive(len(data)) == data
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, data)
                assert await given(port, len(data)) == data


async def test_output_waits_for_the_next_client(host: HostSide, directory: Path) -> None:
    async with running(host) as port:
        port.put_output(b"early")
        with connected(host, directory) as client:
            assert await client.receive(5) == b"early"
        await until(lambda: not port.state.host_open)
        port.put_output(b"meanwhile")
        with connected(host, directory) as client:
            assert await client.receive(9) == b"meanwhile"


@pytest.mark.parametrize("half_closed", [False, True])
async def test_what_a_client_leaves_unread_is_for_the_next_one(directory: Path, half_closed: bool) -> None:
    """Of a UNIX socket; the kernel has it by then. What was read is not repeated."""
    async with running(UnixHost(str(directory / "socket"))) as port:
        for leaves in (True, True, False):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(directory / "socket"))
            if half_closed:
                client.shutdown(socket.SHUT_WR)
            with Client(client) as reader:
                if leaves:
                    port.put_output(b"and more ")
                    await until(lambda: not port.output)
                else:
                    assert await reader.receive(18) == b"and more and more "
                    port.put_output(b"the end")
                    assert await reader.receive(7) == b"the end"
            await until(lambda: not port.state.host_open)
        assert not port.output


async def test_what_a_client_has_read_is_not_put_back(directory: Path) -> None:
    async with running(UnixHost(str(directory / "socket"))) as port:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / "socket"))
        with Client(client) as reader:
            port.put_output(b"first")
            assert await reader.receive(5) == b"first"
            port.put_output(b"second")
            await until(lambda: not port.output)
        await until(lambda: not port.state.host_open)
        assert port.output.peek() == b"second"


async def test_what_a_client_leaves_unread_is_all_there(directory: Path) -> None:
    """More than the kernel has room for: what it had, and what waited behind that."""
    data = bytes(range(251)) * 1000
    host = UnixHost(str(directory / "socket"))
    async with running(host, blocks=True) as port:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / "socket"))
        with Client(client):
            await until(lambda: port.state.host_open)
            port.put_output(data)
            await until(lambda: len(port.output) < len(data))
            await trio.testing.wait_all_tasks_blocked(0.05)
        await until(lambda: not port.state.host_open)
        assert port.output.peek(len(data)) == data
        again = socket.socket(socket.AF_UNIX)
        again.connect(str(directory / "socket"))
        with Client(again) as reader:
            assert await reader.receive(len(data)) == data


async def test_client_that_is_parted_from_has_what_it_was_sent(directory: Path) -> None:
    host = UnixHost(str(directory / "socket"))
    async with running(host) as port:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / "socket"))
        with Client(client) as reader:
            port.put_output(b"for it")
            await until(lambda: not port.output)
            assert host.hang_up()
            assert await reader.receive(6) == b"for it"
            assert await reader.at_its_end()
        await until(lambda: not port.state.host_open)
        assert not port.output


async def test_client_waits_for_a_guest_that_does_not_read(host: HostSide, directory: Path) -> None:
    """More than kernel and port have room for is sent, and nothing of it is lost."""
    data = os.urandom(MIB)
    async with running(host) as port, trio.open_nursery() as nursery:
        with connected(host, directory) as client:
            nursery.start_soon(client.send, data)
            await until(lambda: not port.has_room_for_input())
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert port.input_size <= 2 * INPUT_LIMIT
            assert await given(port, MIB) == data


async def test_last_words_of_a_client_come_before_its_end(directory: Path) -> None:
    host = UnixHost(str(directory / "socket"))
    async with running(host) as port:
        with connected(host, directory) as client:
            await client.send(b"last words")
        await until(lambda: port.has_input)
        await trio.testing.wait_all_tasks_blocked(0.05)
        seen = [port.state.host_open, await given(port, 10), port.state.host_open]
        assert seen == [True, b"last words", False]


async def test_client_that_sends_nothing_more_still_reads(directory: Path) -> None:
    host = UnixHost(str(directory / "socket"))
    async with running(host) as port:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(directory / "socket"))
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        with Client(client) as reader:
            assert await given(port, 8) == b"question"
            port.put_output(b"answer")
            assert await reader.receive(6) == b"answer"
        await until(lambda: not port.state.host_open)


@pytest.mark.parametrize("host", ["unix", "tcp"], indirect=True)
async def test_second_client_waits_and_may_be_let_in(host: HostSide, directory: Path) -> None:
    async with running(host) as port:
        with connected(host, directory) as first, connected(host, directory) as second:
            await second.send(b"second")
            await first.send(b"first ")
            assert await given(port, 6) == b"first "
            assert host.hang_up()
            assert await given(port, 6) == b"second"
            assert await first.at_its_end()


async def test_pseudo_terminal_is_raw_again_for_whoever_comes_next() -> None:
    """One that left it echoing would have the guest's output typed back to the guest."""
    host = PtyHost()
    async with running(host) as port:
        with Client(host.path) as first:
            await until(lambda: port.state.host_open)
            changed = termios.tcgetattr(first.fd)
            changed[3] |= termios.ECHO | termios.ICANON
            termios.tcsetattr(first.fd, termios.TCSANOW, changed)
        await until(lambda: not port.state.host_open)
        with Client(host.path) as second:
            port.put_output(b"login: \n")
            assert await second.receive(8) == b"login: \n"
            await second.send(b"root")
            assert await given(port, 4) == b"root"


async def test_host_sides_run_again_after_their_end(directory: Path) -> None:
    """As where a test serves one device twice. Whoever was connected is not any more in between."""
    with Console() as console:
        part = console.add_port("agent", f"unix:{directory}/socket")
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(console.run_host)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(f"{directory}/socket")
                    await until(lambda: part.port.state.host_open)
                    nursery.cancel_scope.cancel()
            assert not part.port.state.host_open


async def test_size_of_a_pseudo_terminal_is_passed_on() -> None:
    host = PtyHost()
    async with running(host, is_console=True) as port:
        with Client(host.path) as client:
            resize(client.fd, 100, 30)
            await until(lambda: port.state.size == (100, 30))
            port.resize(1, 2)  # from elsewhere: the terminal's own size comes back only with a change
            resize(client.fd, 101, 30)
            await until(lambda: port.state.size == (101, 30))


def test_link_is_made_and_removed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/pts/of-one-that-was-killed")
    host = PtyHost(str(link))
    assert str(link.readlink()) == host.path
    assert str(host) == f"{link} ({host.path})"
    host.close()
    assert not link.is_symlink()


def test_link_of_another_is_left_alone(tmp_path: Path) -> None:
    link = tmp_path / "link"
    host, other = PtyHost(str(link)), PtyHost(str(link))
    host.close()
    assert str(link.readlink()) == other.path
    other.close()


def test_link_replaces_nothing_but_links(tmp_path: Path) -> None:
    (tmp_path / "link").write_text("precious")
    with pytest.raises(FileExistsError):
        PtyHost(str(tmp_path / "link"))
    assert (tmp_path / "link").read_text() == "precious"


async def test_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    async with running(FileHost(str(path))) as port:
        await until(lambda: port.state.host_open)
        port.put_output(b"one ")
        port.put_output(b"two")
        await until(lambda: path.read_bytes() == b"before one two")


async def test_file_that_cannot_be_written_is_tried_again_and_told_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    host = FileHost("/dev/full")
    async with running(host) as port:
        for failures in (1, 2):
            point_at(host, "/dev/full")
            port.put_output(b"data")
            await trio.sleep(10)
            assert len(port.output) == 4
            assert caplog.text.count("/dev/full: No space left on device; make room") == failures
            point_at(host, "/dev/null")
            await trio.sleep(10)
            assert not port.output


def point_at(host: FileHost, path: str) -> None:
    with Path(path).open("wb") as file:
        os.dup2(file.fileno(), host._fd.fileno(), inheritable=False)
