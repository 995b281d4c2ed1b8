"""A guest's driver of a socket device, packet by packet, and the device's host side beside it."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from protocol.virtio.vsock import HEADER_SIZE, HOST_CID, Header, Operation, Shutdown
from vhost_user.testing import driving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vhost_user.devices.vsock.device import Vsock
    from vhost_user.frontend import DriverQueue, Frontend, Request

SECONDS = 60
PORT = 5000
"""Of the host, or of the guest, wherever any will do."""
PACKET = HEADER_SIZE + 4096
"""Bytes of a buffer for a packet, as many as Linux gives."""
BUFFERS = 16
BUF_ALLOC = 65536


class Guest:
    """The driver's side. What a test does not look at, it sees in `packet()`."""

    def __init__(self, cid: int, frontend: Frontend, rx: DriverQueue, tx: DriverQueue) -> None:
        self.cid = cid
        self.frontend = frontend
        self.rx = rx
        self.tx = tx
        self._room: deque[Request] = deque()

    def give_room(self, count: int = BUFFERS, size: int = PACKET) -> None:
        """Give buffers for so many packets."""
        for _ in range(count):
            self._room.append(self.rx.submit(size))

    async def packet(self, *, refill: bool = True) -> tuple[Header, bytes]:
        """Wait for the next packet."""
        data = await self.rx.wait(self._room.popleft())
        if refill:
            self.give_room(1)
        header = Header.decode(data)
        assert len(data) == HEADER_SIZE + header.length
        return header, data[HEADER_SIZE:]

    async def send(self, header: Header, payload: bytes = b"") -> None:
        """Send any packet."""
        await self.tx.request(header.encode(), *([payload] if payload else []))

    def port(self, port: int, peer_port: int, peer_cid: int = HOST_CID) -> End:
        """Return the guest's end of a connection, as it is before there is one."""
        return End(self, port, peer_port, peer_cid)

    async def accepted(self, *, buf_alloc: int = BUF_ALLOC) -> End:
        """Accept the connection that the next packet asks for."""
        header, _ = await self.packet()
        assert header.op == Operation.REQUEST
        end = self.port(header.dst_port, header.src_port, header.src_cid)
        end.buf_alloc = buf_alloc
        await end.send(Operation.RESPONSE)
        return end


class End:
    """The guest's end of one connection."""

    def __init__(self, guest: Guest, port: int, peer_port: int, peer_cid: int) -> None:
        self.guest = guest
        self.addresses = (guest.cid, peer_cid, port, peer_port)
        self.buf_alloc = BUF_ALLOC
        self.fwd_cnt = 0

    async def send(self, op: Operation, payload: bytes = b"", *, flags: int = 0) -> None:
        """Send a packet of the connection."""
        header = Header(
            *self.addresses,
            length=len(payload),
            op=op,
            flags=flags,
            buf_alloc=self.buf_alloc,
            fwd_cnt=self.fwd_cnt,
        )
        await self.guest.send(header, payload)

    async def shut_down(self, how: Shutdown) -> None:
        """Say that the guest sends, or receives, no more."""
        await self.send(Operation.SHUTDOWN, flags=int(how))

    async def expect(self, *ops: Operation) -> list[Header]:
        """Wait for packets of this connection with these operations, and no others."""
        headers = []
        for op in ops:
            header, _ = await self.guest.packet()
            assert Operation(header.op).name == op.name
            self.check(header)
            headers.append(header)
        return headers

    async def expect_data(self, data: bytes) -> None:
        """Wait for these bytes, in RW packets, and pass them on."""
        while data:
            header, payload = await self.guest.packet()
            assert header.op == Operation.RW
            self.check(header)
            assert data.startswith(payload)
            data = data[len(payload) :]
            self.fwd_cnt += len(payload)

    async def connected(self) -> End:
        """Ask for the connection, and wait until it is there."""
        await self.send(Operation.REQUEST)
        await self.expect(Operation.RESPONSE)
        return self

    def check(self, header: Header) -> None:
        cid, peer_cid, port, peer_port = self.addresses
        assert (header.src_cid, header.dst_cid) == (peer_cid, cid)
        assert (header.src_port, header.dst_port) == (peer_port, port)


@asynccontextmanager
async def guest_of(device: Vsock, *, room: int = BUFFERS) -> AsyncIterator[Guest]:
    """Be the guest of `device`, whose host side somebody else runs."""
    async with driving(device, memory_size=16 << 20, patience=SECONDS) as frontend:
        rx, tx = await frontend.start_queue(0), await frontend.start_queue(1)
        guest = Guest(device.guest_cid, frontend, rx, tx)
        guest.give_room(room)
        yield guest


@asynccontextmanager
async def running(*devices: Vsock) -> AsyncIterator[trio.Nursery]:
    """Run the host's side of devices for the length of the block, then close them."""
    try:
        with trio.fail_after(3 * SECONDS):
            async with trio.open_nursery() as nursery:
                for device in devices:
                    nursery.start_soon(device.run_host)
                yield nursery
                nursery.cancel_scope.cancel()
    finally:
        for device in devices:
            device.close()


@asynccontextmanager
async def attached_guest(device: Vsock, *, room: int = BUFFERS) -> AsyncIterator[Guest]:
    """Run a device, and be its guest."""
    async with running(device), guest_of(device, room=room) as guest:
        yield guest


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
