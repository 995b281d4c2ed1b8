"""A front-end and a driver in the test's own process, on a socket pair and a memory file."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from protocol.fds import OwnedFd
from protocol.io import EventFd, FdStream
from protocol.vhost_user import (
    FrontendChannel,
    FrontendSession,
    GetFeatures,
    GetProtocolFeatures,
    GetVringBase,
    MemoryRegion,
    ProtocolFeature,
    Refused,
    Reply,
    Request,
    SetBackendReqFd,
    SetFeatures,
    SetMemTable,
    SetProtocolFeatures,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringErr,
    SetVringKick,
    SetVringNum,
    VringAddressFlag,
    VringBase,
)
from protocol.virtio import packed, split
from protocol.virtio.features import Feature
from vhost_user.backend import serve_connection
from vhost_user.frontend.driver_ring import Buffer, DriverRing, PackedDriver, SplitDriver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from protocol.vhost_user import Packet
    from vhost_user import VirtioDevice

SECONDS = 60
GUEST = 0x1_4000_0000
USER = 0x7F00_0000_0000
MEMORY_SIZE = 4 << 20

PACKED_START = 0x8000_8000

DEFAULT_FEATURES = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX
INBAND = ProtocolFeature((1 << 24) - 1)
"""All protocol features: kicks and calls without an eventfd are messages."""
ALL_PROTOCOL_FEATURES = INBAND.without(ProtocolFeature.INBAND_NOTIFICATIONS)

_R = TypeVar("_R", bound=Reply)
_T = TypeVar("_T")


async def until(found: Callable[[], _T]) -> _T:
    """Return what `found` returns once that is something."""
    with trio.fail_after(SECONDS):
        while not (result := found()):
            await trio.lowlevel.checkpoint()
    return result


class GuestMemory:
    """The guest's memory, with room given out and never taken back."""

    def __init__(self, size: int = MEMORY_SIZE, guest: int = GUEST, user: int = USER) -> None:
        self.fd = OwnedFd(os.memfd_create("test-guest", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), size)
        self.region = MemoryRegion(guest, size, user)
        self.view = memoryview(mmap.mmap(self.fd.fileno(), size))
        self._free = 0

    def allocate(self, size: int) -> int:
        """Return the offset of `size` bytes."""
        start = self._free
        self._free += -(-size // 64) * 64
        assert self._free <= self.region.size, "the test uses up its memory"
        return start

    def buffer(self, size: int) -> Buffer:
        """Return a buffer of `size` bytes."""
        return Buffer(self.region.guest_address + self.allocate(size), size)

    def filled(self, data: bytes) -> Buffer:
        """Return a buffer that holds `data`."""
        buffer = self.buffer(len(data))
        self.at(buffer)[:] = data
        return buffer

    def at(self, buffer: Buffer) -> memoryview:
        """Return a buffer's memory."""
        start = buffer.address - self.region.guest_address
        return self.view[start : start + buffer.length]

    def close(self) -> None:
        self.fd.close()
        self.view = memoryview(b"")


class Queue:
    """One queue: the driver's ring, its eventfds, and what the front-end says of it."""

    def __init__(self, frontend: Frontend, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self.kick = EventFd.create()
        self.call = EventFd.create()
        self.err = EventFd.create()
        self._frontend = frontend
        self._memory = frontend.memory
        self.ring, self.parts = self._make_ring(size)
        self.base = PACKED_START if frontend.is_packed else 0

    def _make_ring(self, size: int) -> tuple[DriverRing, tuple[int, int, int]]:
        memory, features = self._memory, int(self._frontend.features)
        if not self._frontend.is_packed:
            layout = split.layout(size)
            start = memory.allocate(layout.end)
            part = [memory.view[start + a : start + b] for a, b in _spans(layout)]
            return SplitDriver(size, features, *part), (start, start + layout.avail, start + layout.used)
        end = packed.DESCRIPTOR_SIZE * size
        start = memory.allocate(end + 8)
        view = memory.view[start : start + end + 8]
        ring = PackedDriver(size, features, view[:end], view[end : end + 4], view[end + 4 :])
        return ring, (start, start + end, start + end + 4)

    def address(self, flags: VringAddressFlag = VringAddressFlag.NONE, log: int = 0) -> SetVringAddr:
        """Return the request that says where the ring is."""
        table, avail, used = (self._memory.region.user_address + offset for offset in self.parts)
        return SetVringAddr(self.index, flags, table, used, avail, log)

    async def set_up(self) -> None:
        """Say everything of the ring but that it starts."""
        send = self._frontend.request
        await send(SetVringCall(self.index, fds=(self.call.dup(),)))
        await send(SetVringErr(self.index, fds=(self.err.dup(),)))
        await send(SetVringNum(self.index, self.size))
        await send(SetVringBase(self.index, self.base))
        await send(self.address())

    async def start(self) -> None:
        """Set the ring up, start and enable it."""
        await self.set_up()
        await self._frontend.request(SetVringKick(self.index, fds=(self.kick.dup(),)))
        await self.enable()

    async def enable(self, on: bool = True) -> None:
        """Enable the ring, or disable it."""
        await self._frontend.request(SetVringEnable(self.index, on))

    async def stop(self) -> int:
        """Stop the ring; return where it is, from where `start()` goes on."""
        reply = await self._frontend.ask(VringBase, GetVringBase(self.index))
        self.base = reply.base
        return self.base

    def submit(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        memory: GuestMemory | None = None,
    ) -> list[Buffer]:
        """Make a chain available, perhaps in other memory, and kick; return its writable buffers."""
        memory = memory or self._memory
        buffers = [memory.buffer(size) for size in writable]
        token = tuple(memory.at(buffer) for buffer in buffers)
        self.ring.add([memory.filled(data) for data in readable], buffers, token)
        self.ring.publish()
        self.kick.signal()
        return buffers

    async def wait(self, count: int = 1) -> list[list[bytes]]:
        """Wait, for calls, until `count` chains are back; return what was written into their buffers."""
        results: list[list[bytes]] = []
        with trio.fail_after(SECONDS):
            while len(results) < count:
                results += self.collect()
                if len(results) < count and not self.ring.want_calls(True):
                    await self.call.wait()
        return results

    def collect(self) -> list[list[bytes]]:
        """Return what was written into the chains that are back."""
        return [self._written(used.token, used.written) for used in self.ring.used()]

    def _written(self, token: Any, length: int) -> list[bytes]:
        parts = []
        for view in token:
            parts.append(bytes(view[:length]))
            length -= len(parts[-1])
        return parts

    async def exchange(
        self,
        readable: Sequence[bytes] = (),
        writable: Sequence[int] = (),
        memory: GuestMemory | None = None,
    ) -> list[bytes]:
        """Submit a chain and wait for it."""
        self.submit(readable, writable, memory)
        (result,) = await self.wait()
        return result

    def close(self) -> None:
        for eventfd in (self.kick, self.call, self.err):
            eventfd.close()
        del self.ring


def _spans(layout: split.Layout) -> list[tuple[int, int]]:
    return [(layout.table, layout.avail), (layout.avail, layout.used), (layout.used, layout.end)]


class Frontend:
    """A front-end's side of a connection."""

    def __init__(self, stream: FdStream) -> None:
        self.session = FrontendSession()
        self.memory = GuestMemory()
        self.queues: list[Queue] = []
        self.backend_requests: list[Request | Refused] = []
        self.arrived = trio.lowlevel.ParkingLot()
        self._stream = stream
        self._channel: FdStream | None = None

    @property
    def features(self) -> Feature:
        """The features that were negotiated."""
        return self.session.features

    @property
    def is_packed(self) -> bool:
        """True where rings are packed."""
        return Feature.RING_PACKED in self.features

    async def request(self, message: Request) -> Reply | None:
        """Send a request, and ask for an acknowledgement where that can be had. Fails if it is refused."""
        reply = await self.try_request(message)
        assert reply is None or not reply.failed, f"{message!r} was refused"
        return reply

    async def ask(self, kind: type[_R], message: Request) -> _R:
        """Send a request; return its reply of this class."""
        reply = await self.request(message)
        assert isinstance(reply, kind)
        return reply

    async def try_request(self, message: Request, *, need_reply: bool | None = None) -> Reply | None:
        """Send a request; return its reply, whatever that says, or None if none is due."""
        if need_reply is None:
            need_reply = ProtocolFeature.REPLY_ACK in self.session.protocol_features
        try:
            await self._stream.send(*self.session.request(message, need_reply=need_reply))
        finally:
            message.close()
        return await self.reply() if self.session.waiting else None

    async def reply(self) -> Reply:
        """Wait for the next reply. Raises EOFError where the back-end closes the connection."""
        with trio.fail_after(SECONDS):
            while True:
                data, fds = await self._stream.receive(self.session.bytes_wanted)
                if not data:
                    raise EOFError("the back-end closed the connection")
                if replies := self.session.receive(data, fds):
                    return replies[0]

    async def negotiate(
        self,
        features: Feature = DEFAULT_FEATURES,
        protocol: ProtocolFeature = ALL_PROTOCOL_FEATURES,
    ) -> None:
        """Turn on what of these is offered."""
        await self.request(GetFeatures())
        if protocol:
            await self.request(GetProtocolFeatures())
            wanted = protocol & self.session.negotiation.offered_protocol
            await self.request(SetProtocolFeatures(ProtocolFeature(wanted)))
            features |= Feature.PROTOCOL_FEATURES
        await self.set_features(features)

    async def set_features(self, features: Feature) -> None:
        """Turn on what of these is offered."""
        await self.request(SetFeatures(Feature(features & self.session.negotiation.offered)))

    async def share_memory(self) -> None:
        """Pass the memory table."""
        await self.request(SetMemTable((self.memory.region,), fds=(self.memory.fd.dup(),)))

    def queue(self, index: int = 0, size: int = 16) -> Queue:
        """Make a queue, of which nothing has been said yet."""
        queue = Queue(self, index, size)
        self.queues.append(queue)
        return queue

    async def start(self, features: Feature = DEFAULT_FEATURES, *, size: int = 16) -> Queue:
        """Do everything up to a first queue that runs; return that."""
        await self.negotiate(features)
        await self.share_memory()
        queue = self.queue(size=size)
        await queue.start()
        return queue

    async def open_channel(self, nursery: trio.Nursery) -> None:
        """Pass a socket for the back-end's own requests, and acknowledge whatever comes there."""
        ours, theirs = socket.socketpair()
        self._channel = FdStream(ours)
        nursery.start_soon(self._serve_channel, self._channel)
        await self.request(SetBackendReqFd(fds=(OwnedFd(theirs.detach()),)))

    async def _serve_channel(self, stream: FdStream) -> None:
        session = FrontendChannel(self.session)
        data = b"-"
        with stream:
            while data:
                data, fds = await stream.receive(session.bytes_wanted)
                for request in session.receive(data, fds):
                    self.backend_requests.append(request)
                    self.arrived.unpark_all()
                    packet = await self.answer(session, request)
                    if packet is not None:
                        await stream.send(*packet)

    async def answer(self, session: FrontendChannel, request: Request | Refused) -> Any:
        """Answer a request of the back-end's; a test may put another function in place of this."""
        if isinstance(request, Request):
            request.close()
        return session.acknowledge(request, ok=not isinstance(request, Refused))

    async def answer_late(self, packet: Packet | None) -> None:
        """Send the answer to a request of the back-end's, which `answer()` had none for."""
        assert self._channel is not None
        if packet is not None:
            await self._channel.send(*packet)

    async def until_asked(self, count: int = 1) -> list[Request | Refused]:
        """Wait until the back-end has made so many requests; return them."""
        with trio.fail_after(SECONDS):
            while len(self.backend_requests) < count:
                await self.arrived.park()
        return self.backend_requests

    async def until_closed(self) -> None:
        """Wait until the back-end closes the connection."""
        with trio.fail_after(SECONDS), contextlib.suppress(ConnectionResetError):
            assert await self._stream.receive(1) == (b"", [])

    def leave(self) -> None:
        """Close the connection, as a front-end does that ends."""
        self._stream.close()
        if self._channel is not None:
            self._channel.close()

    def close(self) -> None:
        """Close everything."""
        self.leave()
        for request in self.backend_requests:
            if isinstance(request, Request):
                request.close()
        for queue in self.queues:
            queue.close()
        self.memory.close()


@asynccontextmanager
async def attached(device: VirtioDevice) -> AsyncIterator[Frontend]:
    """Serve `device` to a front-end for the length of the block. What the device raises, comes out."""
    ours, theirs = socket.socketpair()
    frontend = Frontend(FdStream(ours))
    try:
        with trio.fail_after(3 * SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_connection, device, FdStream(theirs))
                yield frontend
                frontend.leave()
    finally:
        frontend.close()


async def works(queue: Queue) -> bool:
    """Tell whether the device serves the queue."""
    return await queue.exchange([b"ping"], [8]) == [b"ping"]
