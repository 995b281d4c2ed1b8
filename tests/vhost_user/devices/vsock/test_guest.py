"""The socket device with a guest that does wrong, gives no room for packets, or begins anew."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import ProtocolFeature
from protocol.virtio.vsock import EVENT, HOST_CID, Header, Operation, SocketType
from tests.vhost_user.devices.vsock.driver import (
    BUF_ALLOC,
    PORT,
    asked,
    attached_guest,
    guest_of,
    received,
    running,
    until_reset,
)
from vhost_user.devices.vsock.connection import State
from vhost_user.devices.vsock.connection_table import MAX_REPLIES
from vhost_user.devices.vsock.device import Vsock
from vhost_user.testing import driving

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
