"""The socket device with a driver of ours: connections with the host and between guests, and their ends."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio.vsock import Operation, Shutdown
from tests.vhost_user.devices.vsock.driver import (
    BUF_ALLOC,
    PORT,
    Guest,
    asked,
    asking,
    attached_guest,
    guest_of,
    received,
    running,
    until_reset,
)
from vhost_user.devices.vsock.device import Vsock
from vhost_user.devices.vsock.siblings import Siblings
from vhost_user.devices.vsock.stream import ANSWER_SECONDS, CLOSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


async def test_guest_gets_no_more_small_packets_than_it_can_keep(autojump_clock: MockClock) -> None:
    """Linux resets a connection whose packets cost it more than the room that it tells of."""
    device = Vsock()
    records = [os.urandom(200) for _ in range(150)]
    most = BUF_ALLOC // 1024 - 1
    async with (
        attached_guest(device, room=2 * most) as guest,
        asking(guest, device) as (end, stream),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_send_one_by_one, device, stream, records)
        await wait_all_tasks_blocked()
        headers = [await guest.packet() for _ in range(most + 2)]
        data = [payload for header, payload in headers if header.op == Operation.RW]
        assert data == records[:most]
        others = [header.op for header, _ in headers if header.op != Operation.RW]
        assert others == [Operation.CREDIT_REQUEST] * 2, "at half of them, and when no more may be sent"
        await end.send(Operation.CREDIT_UPDATE)  # it has read nothing
        await end.expect(Operation.CREDIT_REQUEST)  # and is asked again
        end.fwd_cnt += 200 * most
        await end.send(Operation.CREDIT_UPDATE)
        await end.expect_data(b"".join(records[most:]))


async def _send_one_by_one(device: Vsock, stream: trio.SocketStream, records: list[bytes]) -> None:
    for record in records:
        await stream.send_all(record)
        await wait_all_tasks_blocked()  # until it is a packet, and no part of the next one's


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
