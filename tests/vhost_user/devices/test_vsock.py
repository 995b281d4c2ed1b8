"""The socket device with a driver of ours: connections both ways, their ends, and what a guest does wrong."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.vsock import EVENT, HOST_CID, Header, Operation, Shutdown, SocketType
from tests.vhost_user.devices.vsock_driver import (
    BUF_ALLOC,
    SECONDS,
    End,
    Guest,
    attached_guest,
    guest_of,
    running,
)
from vhost_user.devices.vsock import Vsock
from vhost_user.devices.vsock_connection import State
from vhost_user.devices.vsock_siblings import Siblings
from vhost_user.devices.vsock_stream import ANSWER_SECONDS, CLOSE_SECONDS
from vhost_user.devices.vsock_table import MAX_REPLIES
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PORT = 5000


async def received(stream: trio.SocketStream, size: int) -> bytes:
    """Return `size` bytes, or what comes until the end."""
    data = b""
    while len(data) < size and (part := await stream.receive_some(size - len(data))):
        data += part
    return data


async def until_reset(stream: trio.SocketStream) -> None:
    """Wait until the stream is at its end, or was reset."""
    with trio.fail_after(SECONDS):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def asked(guest: Guest, device: Vsock) -> AsyncIterator[tuple[End, trio.SocketStream]]:
    """A connection that the guest asked for, and the host's end."""
    with device.listen(PORT) as listener:
        end = await guest.port(1234, PORT).connected()
        stream = await listener.accept()
    async with stream:
        yield end, stream


@asynccontextmanager
async def asking(guest: Guest, device: Vsock) -> AsyncIterator[tuple[End, trio.SocketStream]]:
    """A connection that the host asked for."""
    streams = []

    async def connect() -> None:
        streams.append(await device.connect(PORT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        end = await guest.accepted()
    (stream,) = streams
    async with stream:
        yield end, stream


BOTH = pytest.mark.parametrize("connect", [asked, asking])


@BOTH
async def test_bytes_both_ways(connect: object) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, connect(guest, device) as (end, stream):  # type: ignore[operator]
        await stream.send_all(b"hello")
        await end.expect_data(b"hello")
        await end.send(Operation.RW, b"goodbye")
        assert await received(stream, 7) == b"goodbye"


async def test_packet_is_as_large_as_the_guest_gives_room_for() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        data = os.urandom(60_000)
        await stream.send_all(data)
        await end.expect_data(data)


async def test_guest_gets_no_more_than_it_has_room_for_and_is_asked_for_more() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asking(guest, device) as (end, stream):
        end.buf_alloc = 100
        await end.send(Operation.CREDIT_UPDATE)
        await stream.send_all(bytes(250))
        await end.expect_data(bytes(100))
        await end.expect(Operation.CREDIT_REQUEST)
        await end.send(Operation.CREDIT_UPDATE)
        await end.expect_data(bytes(100))
        await end.expect(Operation.CREDIT_REQUEST)
        await end.send(Operation.CREDIT_UPDATE)
        await end.expect_data(bytes(50))


async def test_slow_reader_holds_up_its_own_connection_only() -> None:
    device = Vsock(tx_buffer_size=4096)
    async with attached_guest(device) as guest, asked(guest, device) as (slow, stream):
        (connection,) = (stream.connection for stream in device.table.streams)
        sent = 0
        while not connection.held:  # until the socket's own buffer is full
            await slow.send(Operation.RW, bytes(2048))
            sent += 2048
            if not connection.held:
                await slow.expect(Operation.CREDIT_UPDATE)
        with device.listen(PORT + 1) as listener:
            quick = await guest.port(99, PORT + 1).connected()
            async with await listener.accept() as other:
                await other.send_all(b"x")
                await quick.expect_data(b"x")
                await quick.send(Operation.RW, b"y")
                assert await received(other, 1) == b"y"
            await quick.expect(Operation.SHUTDOWN)
        assert connection.held
        assert await received(stream, sent) == bytes(sent)
        await slow.expect(Operation.CREDIT_UPDATE)


async def test_connections_take_turns() -> None:
    """One that has much to send lets others send between its packets."""
    device = Vsock()
    async with attached_guest(device, room=3) as guest, AsyncExitStack() as stack:
        with device.listen(PORT) as listener:
            for port in (1, 2, 3):
                await guest.port(port, PORT).send(Operation.REQUEST)
                await guest.packet(refill=False)
            for _ in range(3):
                stream = await stack.enter_async_context(await listener.accept())
                await stream.send_all(bytes(20_000))
        await wait_all_tasks_blocked()
        guest.give_room(12)
        ports = [(await guest.packet(refill=False))[0].dst_port for _ in range(12)]
        assert {ports.count(port) for port in (1, 2, 3)} == {4}


# Ends


@BOTH
async def test_guest_closes(connect: object) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, connect(guest, device) as (end, stream):  # type: ignore[operator]
        await end.send(Operation.RW, b"last words")
        await end.shut_down(Shutdown.BOTH)
        await end.expect(Operation.RST)
        assert await received(stream, 100) == b"last words"
        assert device.table.streams == []


@BOTH
async def test_host_closes(connect: object) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, connect(guest, device) as (end, stream):  # type: ignore[operator]
        await stream.send_all(b"last words")
        await stream.aclose()
        await end.expect_data(b"last words")
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH
        await end.send(Operation.RST)
        assert device.table.streams == []
        await guest.port(1, PORT).send(Operation.RW, b"x")  # a packet that comes next is what comes next
        header, _ = await guest.packet()
        assert (header.op, header.dst_port) == (Operation.RST, 1)


async def test_guest_ends_first_and_goes_on_reading() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await end.send(Operation.RW, b"question")
        await end.shut_down(Shutdown.SEND)
        assert await received(stream, 100) == b"question"
        await stream.send_all(b"answer")
        await end.expect_data(b"answer")
        await stream.aclose()
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH


async def test_host_ends_first_and_goes_on_reading() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await stream.send_all(b"question")
        await stream.send_eof()
        await end.expect_data(b"question")
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.SEND
        await end.send(Operation.RW, b"answer")
        assert await received(stream, 6) == b"answer"
        await end.shut_down(Shutdown.SEND)
        assert await stream.receive_some() == b""
        (header,) = await end.expect(Operation.SHUTDOWN)  # nothing is left to do either way
        assert header.flags == Shutdown.BOTH


async def test_host_closes_after_its_end() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await stream.send_eof()
        await end.expect(Operation.SHUTDOWN)
        await stream.aclose()
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH


async def test_guest_that_receives_no_more_gets_no_more() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await end.shut_down(Shutdown.RECEIVE)
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(bytes(1 << 22))
        await end.send(Operation.RW, b"still here")
        assert await received(stream, 10) == b"still here"
        await stream.aclose()
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH


async def test_host_that_receives_no_more() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        stream.socket.shutdown(socket.SHUT_RD)
        await end.send(Operation.RW, b"nobody reads this")
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.RECEIVE
        await end.send(Operation.RW, b"under way")
        await stream.send_all(b"still here")
        await end.expect_data(b"still here")


async def test_host_that_leaves_bytes_unread_resets_the_connection() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await stream.send_all(b"last words")
        await end.send(Operation.RW, b"nobody reads this")
        await stream.aclose()
        await end.expect_data(b"last words")
        await end.expect(Operation.RST)


@BOTH
async def test_guest_resets(connect: object) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, connect(guest, device) as (end, stream):  # type: ignore[operator]
        await end.send(Operation.RST)
        await until_reset(stream)
        assert device.table.streams == []


async def test_guest_that_does_not_agree_that_it_is_over_is_reset(autojump_clock: MockClock) -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await stream.aclose()
        await end.expect(Operation.SHUTDOWN)
        began = trio.current_time()
        await end.expect(Operation.RST)
        assert trio.current_time() - began >= CLOSE_SECONDS - 1


async def test_what_the_guest_sent_before_it_left_arrives() -> None:
    """It closes, and is gone, before the host has read."""
    device = Vsock()
    async with running(device):
        async with guest_of(device) as guest, asked(guest, device) as (end, stream):
            sent = 0
            while device.table.streams[0].connection.held == 0:  # until the socket's own buffer is full
                await end.send(Operation.RW, bytes(30_000))
                sent += 30_000
            await end.shut_down(Shutdown.BOTH)
            kept = stream.socket.dup()
        async with trio.SocketStream(kept) as stream:
            assert await received(stream, 1 << 20) == bytes(sent)


async def test_guest_that_is_gone_leaves_no_connection() -> None:
    device = Vsock()
    async with running(device):
        with device.listen(PORT) as listener:
            async with guest_of(device) as guest:
                await guest.port(1, PORT).connected()
                stream = await listener.accept()
            async with stream:
                await until_reset(stream)
        with pytest.raises(ConnectionRefusedError):
            await device.connect(PORT)


# Connections that do not come about


async def test_port_where_nobody_listens_is_refused() -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        end = guest.port(1, PORT)
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)
        assert device.table.streams == []


async def test_guest_refuses() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, trio.open_nursery() as nursery:

        async def connect() -> None:
            with pytest.raises(
                ConnectionRefusedError, match=f"guest 3 does not accept connections to {PORT}"
            ):
                await device.connect(PORT)

        nursery.start_soon(connect)
        header, _ = await guest.packet()
        assert header.op == Operation.REQUEST
        await guest.send(header.answer(Operation.RST))


async def test_guest_that_does_not_answer(autojump_clock: MockClock) -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        began = trio.current_time()
        with pytest.raises(ConnectionRefusedError):
            await device.connect(PORT)
        assert trio.current_time() - began >= ANSWER_SECONDS
        header, _ = await guest.packet()
        assert header.op == Operation.REQUEST
        header, _ = await guest.packet()
        assert header.op == Operation.RST


async def test_guest_has_no_more_connections_than_it_may() -> None:
    device = Vsock(max_connections=3)
    async with attached_guest(device) as guest:
        with device.listen(PORT) as listener:
            ends = [await guest.port(port, PORT).connected() for port in range(3)]
            one_more = guest.port(3, PORT)
            await one_more.send(Operation.REQUEST)
            await one_more.expect(Operation.RST)
            with pytest.raises(ConnectionRefusedError):
                await device.connect(PORT)
            for _ in ends:
                await (await listener.accept()).aclose()
            for end in ends:
                await end.expect(Operation.SHUTDOWN)
                await end.send(Operation.RST)
            await one_more.connected()


# What a guest does wrong


WRONG = {
    "another CID": Header(4, HOST_CID, 1, PORT, op=Operation.REQUEST),
    "upper half of the CID": Header(1 << 32 | 3, HOST_CID, 1, PORT, op=Operation.REQUEST),
    "no stream": Header(3, HOST_CID, 1, PORT, type=SocketType.SEQPACKET, op=Operation.REQUEST),
    "unknown type": Header(3, HOST_CID, 1, PORT, type=77, op=Operation.REQUEST),
    "unknown connection": Header(3, HOST_CID, 1, PORT, op=Operation.RW),
    "unknown operation": Header(3, HOST_CID, 1, PORT, op=99),
    "unknown guest": Header(3, 7, 1, PORT, op=Operation.REQUEST),
    "itself": Header(3, 3, 1, PORT, op=Operation.REQUEST),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_packet_that_belongs_nowhere_is_answered_by_a_reset(wrong: str) -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        with device.listen(PORT):
            await guest.send(WRONG[wrong])
            header, payload = await guest.packet()
    assert (header[:8], payload) == (WRONG[wrong].answer(Operation.RST)[:8], b"")  # all but our room


async def test_reset_is_not_answered_by_a_reset() -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        for header in WRONG.values():
            await guest.send(header._replace(op=int(Operation.RST)))
        await guest.send(WRONG["unknown connection"])
        header, _ = await guest.packet()
        assert header == WRONG["unknown connection"].answer(Operation.RST)


@pytest.mark.parametrize(
    ("chain", "answered"),
    [
        pytest.param((b"short",), False, id="shorter than a header"),
        pytest.param((10,), False, id="nothing to read"),
        pytest.param(
            (Header(3, 2, 9, PORT, 100, op=Operation.RW).encode(), b"x" * 99), True, id="payload too short"
        ),
    ],
)
async def test_chain_that_is_no_packet_comes_back_and_others_work(
    chain: tuple[bytes | int, ...], answered: bool
) -> None:
    device = Vsock()
    async with attached_guest(device) as guest:
        assert await guest.tx.request(*chain) == b""
        if answered:
            header, _ = await guest.packet()
            assert header.op == Operation.RST
        async with asked(guest, device) as (end, stream):
            await stream.send_all(b"x")
            await end.expect_data(b"x")


async def test_packet_of_a_connection_that_is_shorter_than_it_says_resets_it() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await guest.send(Header(*end.addresses, 100, op=Operation.RW), b"x" * 99)
        await end.expect(Operation.RST)
        await until_reset(stream)


async def test_payload_may_have_more_room_than_it_needs() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        header = Header(*end.addresses, 5, op=Operation.RW, buf_alloc=BUF_ALLOC)
        await guest.tx.request(header.encode() + b"he", b"llo and more")
        assert await received(stream, 5) == b"hello"
        await end.send(Operation.RW, b"!")
        assert await received(stream, 1) == b"!"


async def test_request_for_a_connection_that_is_there_resets_it() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)
        await until_reset(stream)


async def test_guest_that_sends_more_than_it_may_is_reset() -> None:
    device = Vsock(tx_buffer_size=1024)
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await end.send(Operation.RW, bytes(1025))
        await end.expect(Operation.RST)
        await until_reset(stream)


@pytest.mark.parametrize("room", [(), (10,), (44,)])
async def test_room_for_less_than_a_packet_comes_back_empty(room: tuple[int, ...]) -> None:
    device = Vsock()
    async with attached_guest(device, room=0) as guest:
        assert await guest.rx.request(*(room or (b"nothing to write to",))) == b""
        guest.give_room(4)
        async with asked(guest, device) as (end, stream):
            await stream.send_all(b"x")
            await end.expect_data(b"x")


async def test_room_in_pieces() -> None:
    device = Vsock()
    async with attached_guest(device, room=1) as guest, asked(guest, device) as (_, stream):
        await stream.send_all(b"x")
        await guest.packet(refill=False)
        await stream.send_all(b"0123456789")
        data = await guest.rx.request(20, 20, 7, 1, 1000)
        assert data[44:] == b"0123456789"


async def test_guest_that_gives_no_room_for_answers_is_not_listened_to_for_ever() -> None:
    """So many are kept for it; the others wait in its queue, and all are answered in the end."""
    device = Vsock()
    async with attached_guest(device, room=0) as guest:
        header = Header(3, HOST_CID, 0, PORT, op=Operation.RW)
        requests = []
        for port in range(MAX_REPLIES + 50):
            if port < MAX_REPLIES:
                await guest.send(header._replace(src_port=port))
            else:
                requests.append(guest.tx.submit(header._replace(src_port=port).encode()))
        await wait_all_tasks_blocked()
        assert not guest.tx.ring.used()
        ports = []
        for _ in range(MAX_REPLIES + 50):
            guest.give_room(1)
            ports.append((await guest.packet(refill=False))[0].dst_port)
        assert ports == list(range(MAX_REPLIES + 50))
        for request in requests:
            await guest.tx.wait(request)


async def test_guest_that_waits_for_room_goes_on_after_a_reset_of_the_transport() -> None:
    device = Vsock()
    async with attached_guest(device, room=0) as guest:
        await guest.frontend.start_queue(2)
        header = Header(3, HOST_CID, 0, PORT, op=Operation.RW)
        for port in range(MAX_REPLIES):
            await guest.send(header._replace(src_port=port))
        request = guest.tx.submit(header.encode())
        await wait_all_tasks_blocked()
        device.reset_transport()
        await guest.tx.wait(request)


async def test_host_without_room_for_another_socket_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Vsock()

    def watch(*_: object) -> None:
        raise OSError(errno.ENOSPC, "too many are watched")

    async with attached_guest(device) as guest:
        with monkeypatch.context() as patch, device.listen(PORT):
            patch.setattr(device.table, "watch", watch)
            end = guest.port(1, PORT)
            await end.send(Operation.REQUEST)
            await end.expect(Operation.RST)
            with pytest.raises(ConnectionRefusedError):
                await device.connect(PORT)
        async with asked(guest, device) as (end, stream):
            await stream.send_all(b"x")
            await end.expect_data(b"x")


# Life


async def test_queues_that_wait_stop_at_once_and_go_on() -> None:
    device = Vsock()
    device.drain_seconds = 60
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        await guest.frontend.stop_queue(guest.rx)
        await guest.frontend.stop_queue(guest.tx)
        await stream.send_all(b"sent meanwhile")
        await guest.frontend.resume_queue(guest.rx)
        await guest.frontend.resume_queue(guest.tx)
        await end.expect_data(b"sent meanwhile")
        await end.send(Operation.RW, b"and back")
        assert await received(stream, 8) == b"and back"


async def test_driver_that_begins_anew_has_no_connections() -> None:
    device = Vsock()
    async with running(device):
        for _ in range(2):
            async with guest_of(device) as guest:
                with device.listen(PORT) as listener:
                    await guest.port(1, PORT).connected()
                    stream = await listener.accept()
                await guest.frontend.reset()
                async with stream:
                    await until_reset(stream)


async def test_driver_that_begins_anew_without_saying_so_has_no_connections() -> None:
    device = Vsock()
    device.withhold(ProtocolFeature.RESET_DEVICE)
    async with attached_guest(device) as guest:
        with device.listen(PORT) as listener:
            await guest.port(1, PORT).connected()
            stream = await listener.accept()
        await guest.frontend.reset()
        await guest.frontend.start_queue(0)
        async with stream:
            await until_reset(stream)


async def test_driver_may_begin_with_one_queue_long_before_the_other() -> None:
    """User Mode Linux starts a queue when its driver has something for it."""
    device = Vsock()

    async def connect() -> None:
        async with await device.connect(PORT):
            await trio.sleep_forever()

    async with running(device), driving(device) as frontend, trio.open_nursery() as nursery:
        rx = await frontend.start_queue(0)
        nursery.start_soon(connect)
        header = Header.decode(await rx.request(100))
        tx = await frontend.start_queue(1)
        response = header.answer(Operation.RESPONSE)
        await tx.request(response.encode())
        assert [stream.connection.state for stream in device.table.streams] == [State.OPEN]
        nursery.cancel_scope.cancel()


async def test_driver_whose_connections_were_lost_is_told_so() -> None:
    """As where the back-end was restarted beneath it."""
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (_, stream):
        events = await guest.frontend.start_queue(2)
        event = events.submit(EVENT.size)
        for queue in (guest.rx, guest.tx):
            await guest.frontend.stop_queue(queue)
        device.reset()
        await until_reset(stream)
        await guest.frontend.resume_queue(guest.rx)
        assert await events.wait(event) == bytes(4)


async def test_events() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        events = await guest.frontend.start_queue(2)
        small, event = events.submit(3), events.submit(EVENT.size)
        device.reset_transport()
        assert await events.wait(small) == b""
        assert await events.wait(event) == bytes(4)
        await until_reset(stream)
        await end.send(Operation.RW, b"what I do not know yet")
        await end.expect(Operation.RST)


async def test_transport_reset_without_an_event_queue_resets_each_connection() -> None:
    device = Vsock()
    async with attached_guest(device) as guest, asked(guest, device) as (end, stream):
        device.reset_transport()
        await end.expect(Operation.RST)
        await until_reset(stream)


# Siblings


@asynccontextmanager
async def siblings(**groups: tuple[str, ...]) -> AsyncIterator[tuple[Guest, Guest]]:
    family = Siblings()
    first = Vsock(3, groups=groups.get("first", ("default",)), siblings=family)
    second = Vsock(4, groups=groups.get("second", ("default",)), siblings=family)
    async with running(first, second), guest_of(first) as one, guest_of(second) as other:
        yield one, other


async def test_guests_connect_to_each_other() -> None:
    async with siblings() as (one, other):
        end = one.port(1000, PORT, peer_cid=4)
        await end.send(Operation.REQUEST)
        answering = await other.accepted()
        assert answering.addresses == (4, 3, PORT, 1000)
        await end.expect(Operation.RESPONSE)
        await end.send(Operation.RW, b"hello")
        await answering.expect_data(b"hello")
        await answering.send(Operation.RW, b"goodbye")
        await answering.shut_down(Shutdown.BOTH)
        await answering.expect(Operation.RST)
        await end.expect_data(b"goodbye")
        (header,) = await end.expect(Operation.SHUTDOWN)
        assert header.flags == Shutdown.BOTH


async def test_guest_refuses_another() -> None:
    async with siblings() as (one, other):
        end = one.port(1000, PORT, peer_cid=4)
        await end.send(Operation.REQUEST)
        header, _ = await other.packet()
        await other.send(header.answer(Operation.RST))
        await end.expect(Operation.RST)


async def test_guests_without_a_common_group_do_not_connect() -> None:
    async with siblings(first=("a", "b"), second=("c",)) as (one, _):
        end = one.port(1000, PORT, peer_cid=4)
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)


async def test_guests_with_a_common_group_connect() -> None:
    async with siblings(first=("a", "b"), second=("b",)) as (one, other):
        end = one.port(1000, PORT, peer_cid=4)
        await end.send(Operation.REQUEST)
        await other.accepted()
        await end.expect(Operation.RESPONSE)


async def test_guest_that_is_not_up_is_not_connected_to() -> None:
    family = Siblings()
    first, second = Vsock(3, siblings=family), Vsock(4, siblings=family)
    async with running(first, second), guest_of(first) as one:
        end = one.port(1000, PORT, peer_cid=4)
        await end.send(Operation.REQUEST)
        await end.expect(Operation.RST)


def test_two_guests_with_one_cid() -> None:
    family = Siblings()
    with Vsock(7, siblings=family), pytest.raises(ValueError, match="two guests have the CID 7"):
        Vsock(7, siblings=family)
