"""The proxy of a trace: nothing is changed or lost, and all is recorded."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from protocol.fds import OwnedFd
from protocol.io import FdStream, Listener, connect, exhaustion, listen
from protocol.io.stream import MAX_FDS
from protocol.vhost_user import (
    BackendChannel,
    BackendSession,
    ConfigChange,
    Features,
    FrontendChannel,
    FrontendRequest,
    FrontendSession,
    GetFeatures,
    GetProtocolFeatures,
    MemoryRegion,
    ProtocolFeature,
    ProtocolFeatures,
    Request,
    SetBackendReqFd,
    SetMemTable,
    SetProtocolFeatures,
    pack,
)
from protocol.virtio.features import Feature
from vhost_user.trace import Message, Note, trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from protocol.vhost_user import Packet, Reply
    from vhost_user.trace import Event

SECONDS = 60
OFFERED = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK


class Rig:
    """A trace that runs, and what it has told."""

    def __init__(self, directory: Path, backend: Listener) -> None:
        self.path = str(directory / "trace")
        self.backend = backend
        self.events: list[Event] = []
        self._told = trio.lowlevel.ParkingLot()

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self._told.unpark_all()

    def messages(self) -> list[str]:
        return [
            f"{'channel ' * event.channel}{event.sender}: {event.observed}"
            for event in self.events
            if isinstance(event, Message)
        ]

    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]

    async def pair(self) -> tuple[FdStream, FdStream]:
        """Connect a front-end; return its stream and the back-end's."""
        frontend = await connect(self.path)
        return frontend, await self.backend.accept()

    async def until(self, text: str) -> None:
        """Wait until a note holds `text`."""
        while not any(text in note for note in self.notes()):
            await self._told.park()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
async def rig(directory: Path) -> AsyncIterator[Rig]:
    async with tracing(directory) as running:
        yield running


@asynccontextmanager
async def tracing(directory: Path) -> AsyncIterator[Rig]:
    with listen(str(directory / "backend")) as backend, listen(str(directory / "trace")) as listener:
        rig = Rig(directory, backend)
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trace, listener, backend.path, rig.tell)
                yield rig
                nursery.cancel_scope.cancel()


class Frontend:
    """A front-end's end of the connection."""

    def __init__(self, stream: FdStream) -> None:
        self.stream = stream
        self.session = FrontendSession()

    async def ask(self, message: Request, *, need_reply: bool = False) -> None:
        packet = self.session.request(message, need_reply)
        await self.stream.send(*packet)
        message.close()

    async def reply(self) -> Reply:
        while not (
            replies := self.session.receive(*await self.stream.receive(self.session.bytes_wanted, MAX_FDS))
        ):
            pass
        return replies[0]


class Backend:
    """A back-end's end of the connection."""

    def __init__(self, stream: FdStream) -> None:
        self.stream = stream
        self.session = BackendSession(Feature.PROTOCOL_FEATURES, OFFERED)

    async def take(self) -> Request:
        while not (
            found := self.session.receive(*await self.stream.receive(self.session.bytes_wanted, MAX_FDS))
        ):
            pass
        assert isinstance(found[0], Request)
        return found[0]

    async def answer(self, packet: Packet | None) -> None:
        assert packet is not None
        await self.stream.send(*packet)


async def negotiate(frontend: Frontend, backend: Backend) -> None:
    """Turn OFFERED on."""
    await frontend.ask(GetFeatures())
    await backend.answer(backend.session.reply(await backend.take(), Features(Feature.PROTOCOL_FEATURES)))
    await frontend.reply()
    await frontend.ask(GetProtocolFeatures())
    await backend.answer(backend.session.reply(await backend.take(), ProtocolFeatures(OFFERED)))
    await frontend.reply()
    await frontend.ask(SetProtocolFeatures(OFFERED))
    await backend.take()


async def test_messages_are_told_in_both_directions_with_the_time_of_replies(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend:
        await negotiate(Frontend(frontend), Backend(backend))
    assert rig.messages() == [
        "front-end: GET_FEATURES",
        "back-end: reply to GET_FEATURES features=PROTOCOL_FEATURES",
        "front-end: GET_PROTOCOL_FEATURES",
        "back-end: reply to GET_PROTOCOL_FEATURES features=REPLY_ACK|BACKEND_REQ|CONFIG",
        "front-end: SET_PROTOCOL_FEATURES features=REPLY_ACK|BACKEND_REQ|CONFIG",
    ]
    seconds = [event.seconds for event in rig.events if isinstance(event, Message)]
    assert [each is None for each in seconds] == [True, False, True, False, True]
    assert all(0 < each < SECONDS for each in seconds if each is not None)


async def test_files_come_with_their_message_in_order(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend:
        files = [os.memfd_create(f"region {number}") for number in range(8)]
        inodes = [os.fstat(fd).st_ino for fd in files]
        regions = tuple(MemoryRegion(n << 20, 1 << 20, n << 30) for n in range(8))
        await Frontend(frontend).ask(SetMemTable(regions, fds=tuple(OwnedFd(fd) for fd in files)))
        request = await Backend(backend).take()
        assert isinstance(request, SetMemTable)
        assert request.regions == regions
        assert [os.fstat(fd.fileno()).st_ino for fd in request.fds] == inodes
        request.close()
    assert "fds=8" in rig.messages()[0]


async def test_as_many_files_pass_as_a_message_can_carry(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("file")) as file:
        message = pack(FrontendRequest.SET_LOG_FD, 1, b"")
        await frontend.send(message, [file.fileno()] * MAX_FDS)
        data, fds = await backend.receive_exactly(len(message), MAX_FDS)
        assert (data, len(fds)) == (message, MAX_FDS)
        for fd in fds:
            fd.close()
    assert "253 file descriptors came with it" in rig.messages()[0]


async def test_files_that_come_late_are_told_and_passed_on(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("file")) as file:
        message = pack(FrontendRequest.SET_LOG_FD, 1, b"")
        await frontend.send(message[:4])
        await trio.testing.wait_all_tasks_blocked()  # otherwise one read gets both
        await frontend.send(message[4:], [file.fileno()])
        data, fds = await backend.receive_exactly(len(message), 1)
        assert (data, len(fds)) == (message, 1)
        fds[0].close()
    assert "wrong: file descriptors came after the first byte" in rig.messages()[0]


async def test_files_that_are_lost_end_the_connection(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("file")) as file:
        with no_more_files():
            await frontend.send(pack(FrontendRequest.SET_LOG_FD, 1, b""), [file.fileno()])
            await rig.until("connection broken (file descriptors were lost on receipt; raise the limit")
        assert await frontend.receive_exactly(1) == (b"", [])
        assert await backend.receive_exactly(1) == (b"", [])


@contextmanager
def no_more_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with OwnedFd(os.dup(0)) as next_free:
        lowest = next_free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_backend_requests_are_told_and_passed_on(rig: Rig) -> None:
    one, other = await rig.pair()
    with one, other:
        frontend, backend = Frontend(one), Backend(other)
        await negotiate(frontend, backend)
        ours, theirs = socket.socketpair()
        await frontend.ask(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))
        request = await backend.take()
        fd = request.take_fd()
        assert fd is not None
        with (
            FdStream(socket.socket(fileno=fd.detach())) as backend_channel,
            FdStream(ours) as frontend_channel,
        ):
            requests, answers = BackendChannel(backend.session), FrontendChannel(frontend.session)
            await backend_channel.send(*requests.request(ConfigChange(), need_reply=True))
            change = answers.receive(*await frontend_channel.receive_exactly(12))[0]
            packet = answers.acknowledge(change)
            assert packet is not None
            await frontend_channel.send(*packet)
            assert requests.receive(*await backend_channel.receive_exactly(12)) == []
            assert [
                str(reply.answers) for reply in requests.receive(*await backend_channel.receive_exactly(8))
            ] == ["ConfigChange(need_reply)"]
    assert rig.messages()[-2:] == [
        "channel back-end: CONFIG_CHANGE_MSG need_reply",
        "channel front-end: reply to CONFIG_CHANGE_MSG value=0",
    ]


async def test_backend_channel_keeps_the_mode_that_the_frontend_gave_it(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend:
        for blocking in (True, False):
            ours, theirs = socket.socketpair()
            theirs.setblocking(blocking)
            with ours, theirs:
                await frontend.send(pack(FrontendRequest.SET_BACKEND_REQ_FD, 1, b""), [theirs.fileno()])
                _, fds = await backend.receive_exactly(12, 1)
                assert os.get_blocking(fds[0].fileno()) == blocking
                fds[0].close()


async def test_backend_channel_that_is_no_socket_is_passed_on(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("no socket")) as file:
        await frontend.send(pack(FrontendRequest.SET_BACKEND_REQ_FD, 1, b""), [file.fileno()])
        _, fds = await backend.receive_exactly(12, 1)
        assert os.fstat(fds[0].fileno()).st_ino == os.fstat(file.fileno()).st_ino
        fds[0].close()
    assert "the back-end's requests cannot be traced: Socket operation on non-socket" in rig.notes()


async def test_unknown_messages_pass_unchanged(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("file")) as file:
        request, reply = pack(4711, 0xFFFFFFF9, b"whatever"), pack(4711, 0x5, b"")
        await frontend.send(request, [file.fileno()])
        data, fds = await backend.receive_exactly(len(request), 1)
        assert (data, len(fds)) == (request, 1)
        fds[0].close()
        await backend.send(reply)
        assert (await frontend.receive_exactly(len(reply)))[0] == reply
    asked, answered = rig.messages()
    assert asked == ("front-end: request 4711 flags=0xfffffff9 size=8 fds=1 (wrong: its number is not known)")
    assert "reply to request 4711" in answered


@pytest.mark.parametrize("lost", [pack(1, 0, b"version 0"), pack(1, 1, bytes(5000))])
async def test_what_is_no_message_passes_unchanged(rig: Rig, lost: bytes) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend, OwnedFd(os.memfd_create("file")) as file:
        await frontend.send(lost, [file.fileno()])
        await frontend.send(pack(1, 1, b""))
        data, fds = await backend.receive_exactly(len(lost) + 12, 1)
        assert (data, len(fds)) == (lost + pack(1, 1, b""), 1)
        fds[0].close()
        await backend.send(b"HTTP/1.1 400 Bad Request")
        assert (await frontend.receive_exactly(24))[0] == b"HTTP/1.1 400 Bad Request"
    assert any("from the front-end on the connection are not a message" in note for note in rig.notes())


async def test_part_of_a_message_passes_when_its_sender_ends(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with backend:
        with frontend:
            await frontend.send(pack(1, 1, b"12345678")[:15])
        assert await backend.receive_exactly(100) == (pack(1, 1, b"12345678")[:15], [])
    await rig.until("ended after 15 bytes of a message")


async def test_replies_pass_after_the_frontend_has_half_closed(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend:
        await Frontend(frontend).ask(GetFeatures())
        half_close(frontend)
        await Backend(backend).take()
        assert await backend.receive_exactly(1) == (b"", [])  # so the back-end knows, too
        reply = pack(1, 5, bytes(8))
        await backend.send(reply)
        assert (await frontend.receive_exactly(len(reply)))[0] == reply
        assert not hang_ups(frontend).poll(0)
    assert "connection half-closed by the front-end" in rig.notes()


async def test_frontend_is_told_when_the_backend_does_not_listen_any_more(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend, backend:
        await backend.send(pack(1, 5, bytes(8)))
        with socket.fromfd(backend.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.shutdown(socket.SHUT_RD)
        await frontend.send(pack(1, 1, b""))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BrokenPipeError):
            await frontend.send(pack(1, 1, b""))
        assert await frontend.receive_exactly(20) == (pack(1, 5, bytes(8)), [])


def half_close(stream: FdStream) -> None:
    with socket.fromfd(stream.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.shutdown(socket.SHUT_WR)


def hang_ups(stream: FdStream) -> select.poll:
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return poll


async def hung_up(stream: FdStream) -> None:
    """Wait until the other end is closed in both directions, for which trio has no function."""
    assert await trio.to_thread.run_sync(hang_ups(stream).poll, SECONDS * 1000), "it was never hung up"


async def test_frontend_sees_a_hang_up_when_the_backend_dies(rig: Rig) -> None:
    """QEMU reconnects on a hang-up, not at the end of what it can read."""
    frontend, backend = await rig.pair()
    with frontend:
        await frontend.send(pack(1, 1, b""))
        await backend.receive_exactly(12)
        backend.close()
        assert await frontend.receive_exactly(1) == (b"", [])
        await hung_up(frontend)
    assert "connection closed by the back-end" in rig.notes()


async def test_frontend_sees_a_hang_up_when_the_backend_half_closes_first(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    with frontend:
        half_close(backend)
        assert await frontend.receive_exactly(1) == (b"", [])
        backend.close()
        await hung_up(frontend)


async def test_backend_channel_ends_with_the_connection(rig: Rig) -> None:
    frontend, backend = await rig.pair()
    ours, theirs = socket.socketpair()
    with FdStream(ours) as channel, theirs:
        with frontend, backend:
            await frontend.send(pack(FrontendRequest.SET_BACKEND_REQ_FD, 1, b""), [theirs.fileno()])
            theirs.close()
            _, fds = await backend.receive_exactly(12, 1)
        assert await channel.receive_exactly(1) == (b"", [])
        fds[0].close()


async def test_connections_do_not_mix(rig: Rig) -> None:
    pairs = [await rig.pair() for _ in range(3)]
    for number, (frontend, _) in reversed(list(enumerate(pairs))):
        await frontend.send(pack(FrontendRequest.SET_VRING_NUM, 1, bytes([number, 0, 0, 0, 16, 0, 0, 0])))
    for number, (_, backend) in enumerate(pairs):
        assert (await backend.receive_exactly(20))[0][12] == number
    for stream in (stream for pair in pairs for stream in pair):
        stream.close()
    said = {event.connection: event.observed.text for event in rig.events if isinstance(event, Message)}
    assert said == {n + 1: f"SET_VRING_NUM index={n} num=16" for n in range(3)}


async def test_frontend_is_hung_up_on_while_no_backend_is_there_and_served_later(directory: Path) -> None:
    async with tracing(directory) as rig:
        rig.backend.close()
        with await connect(rig.path) as frontend:
            assert await frontend.receive_exactly(1) == (b"", [])
        assert f"cannot connect to {directory}/backend: No such file or directory" in rig.notes()
        with listen(str(directory / "backend")) as rig.backend:
            one, other = await rig.pair()
            with one, other:
                await negotiate(Frontend(one), Backend(other))


async def test_accepting_is_tried_again_and_one_note_says_why(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhaustion, "RETRY_SECONDS", 0.01)
    failures = [errno.EMFILE, errno.EMFILE, errno.ENOMEM]
    accept = Listener.accept

    async def accept_at_the_limit(listener: Listener) -> FdStream:
        if listener.path.endswith("trace") and failures:
            number = failures.pop(0)
            raise OSError(number, os.strerror(number))
        return await accept(listener)

    monkeypatch.setattr(Listener, "accept", accept_at_the_limit)
    async with tracing(directory) as rig:
        one, other = await rig.pair()
        with one, other:
            await negotiate(Frontend(one), Backend(other))
    assert [note for note in rig.notes() if "accepted" in note] == [
        "no connection can be accepted: Too many open files; raise the limit of open files (ulimit -n)"
    ]


async def test_name_of_a_process_may_be_in_no_encoding(directory: Path) -> None:
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes(b"fr\xffnt")
    try:
        async with tracing(directory) as rig:
            one, other = await rig.pair()
            with one, other:
                assert any("(fr\\xffnt) connected" in note for note in rig.notes())
    finally:
        comm.write_bytes(before)


async def test_backend_may_be_the_one_that_connects(directory: Path) -> None:
    async with tracing(directory) as rig:
        one, other = await rig.pair()
        with one, other:
            await negotiate(Frontend(other), Backend(one))
    assert rig.messages()[:2] == [
        "front-end: GET_FEATURES",
        "back-end: reply to GET_FEATURES features=PROTOCOL_FEATURES",
    ]
    assert rig.notes()[1] == "this is the back-end: the other side speaks first"
