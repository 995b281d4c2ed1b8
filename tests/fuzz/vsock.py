"""Any packets to the connections of a socket device, while the host's ends of them do as they like.

An input is a row of steps, the first byte of each saying what it is: see `_Run.step()`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from typing import TYPE_CHECKING, cast

import trio

from protocol.virtio.vsock import HEADER_SIZE, HOST_CID, Header, Operation, SocketType
from tests.fuzz.harness import DefectError
from vhost_user.buffers import Readable
from vhost_user.devices.vsock.connection import Address
from vhost_user.devices.vsock.connection_table import ConnectionTable, TooManyConnectionsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vhost_user.devices.vsock.stream import Stream
    from vhost_user.ring.chain import Chain

CID = 3
BUFFER = 4096
MOST = 6
PACKET, ROOM, HOST, ASK, EVENTS = range(5)
"""What a step is."""

_PACKET = struct.Struct("<BBBBHIIB")
"""op, our port, the guest's, flags, length, buf_alloc, fwd_cnt, and bits of what is wrong with it."""
OTHER_CID, OTHER_TYPE, TOO_SHORT, HIGH_CID, OTHER_HOST = (1 << bit for bit in range(5))
_REFUSED = 7
"""The port at which nobody listens."""


class _Chain:
    """What a ConnectionTable takes and fills."""

    def __init__(self, readable: bytes = b"", room: int = 0) -> None:
        self.memory = bytearray(b"\xa5" * room)
        view = memoryview(self.memory)
        self.writable_buffers = [view[: room // 3], view[room // 3 :]] if room > 2 else [view]
        self.writable_length = room
        self.readable = Readable([memoryview(readable)], len(readable))


class _Run:
    """A table, the host's ends of its connections, and what has gone to the guest."""

    def __init__(self) -> None:
        self.table = ConnectionTable(CID, buf_alloc=BUFFER, most=MOST, asked=self._on_asked)
        self.ends: list[socket.socket] = []
        self.room: dict[tuple[Address, int], tuple[int, int]] = {}
        """By our end and the guest's port: what the guest said last that it can hold, and has passed on."""
        self.sent: dict[tuple[Address, int], int] = {}

    def _on_asked(self, stream: Stream) -> None:
        port = stream.connection.own.port
        if port == _REFUSED:
            stream.reset()
        elif port < _REFUSED:
            ours, theirs = socket.socketpair()
            self.ends.append(theirs)
            stream.accept(ours)

    def step(self, data: memoryview) -> int:
        """Take a step; return how many bytes of `data` said which, 0 at the end."""
        steps: list[Callable[[memoryview], int]] = [
            self._packet,
            self._room,
            self._host,
            self._ask,
            self._events,
        ]
        return 1 + steps[data[0] % len(steps)](data[1:]) if len(data) else 0

    def _packet(self, data: memoryview) -> int:
        if len(data) < _PACKET.size:
            return 0
        op, own, port, flags, length, buf_alloc, fwd_cnt, wrong = _PACKET.unpack_from(data)
        header = Header(
            CID + bool(wrong & OTHER_CID) | bool(wrong & HIGH_CID) << 32,
            HOST_CID + bool(wrong & OTHER_HOST),
            *(port, own, length, SocketType.STREAM + bool(wrong & OTHER_TYPE), op, flags, buf_alloc, fwd_cnt),
        )
        if not wrong & (OTHER_CID | OTHER_TYPE | HIGH_CID):
            key = Address(header.dst_cid, own), port
            if header.op == Operation.REQUEST:
                self.sent.pop(key, None)
            self.room[key] = buf_alloc, fwd_cnt
        self.table.take(cast("Chain", _Chain(header.encode() + bytes(0 if wrong & TOO_SHORT else length))))
        return _PACKET.size

    def _room(self, data: memoryview) -> int:
        size = int.from_bytes(data[:2], "little") % (BUFFER * 2)
        chain = _Chain(room=size)
        written = self.table.fill(cast("Chain", chain))
        if written:
            self._check(bytes(chain.memory), written)
        elif chain.memory[:HEADER_SIZE] != b"\xa5" * min(size, HEADER_SIZE):
            raise DefectError("a chain was written to, and said to be empty")
        return 2

    def _check(self, memory: bytes, written: int) -> None:
        header = Header.decode(memory)
        if written != HEADER_SIZE + header.length or written > len(memory):
            raise DefectError(f"{written} bytes of {len(memory)} for {header}")
        if memory[written:].strip(b"\xa5"):
            raise DefectError("more was written than was said")
        if header.op == Operation.RW:
            key = Address(header.src_cid, header.src_port), header.dst_port
            sent = self.sent[key] = self.sent.get(key, 0) + header.length
            buf_alloc, fwd_cnt = self.room[key]
            if (sent - fwd_cnt) & 0xFFFF_FFFF > buf_alloc:
                raise DefectError(
                    f"the guest can hold {buf_alloc} and has passed {fwd_cnt} on; it got {sent}"
                )

    def _host(self, data: memoryview) -> int:
        if not self.ends or len(data) < 2:
            return 2
        end = self.ends[data[0] % len(self.ends)]
        with contextlib.suppress(OSError):
            if data[1] < 0x80:
                end.send(bytes(data[1] * 64), socket.MSG_DONTWAIT)
            elif data[1] < 0xC0:
                end.recv(data[1] * 256, socket.MSG_DONTWAIT)
            elif data[1] < 0xE0:
                end.shutdown((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)[data[1] % 3])
            else:
                end.close()
        return 2

    def _ask(self, data: memoryview) -> int:
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        own = Address(HOST_CID, self.table.free_port() & 0xFF)
        self.sent.pop((own, data[0] if data else 0), None)
        with contextlib.suppress(TooManyConnectionsError):
            self.table.ask(ours, data[0] if data else 0, own=own, answered=lambda _: None)
        return 1

    def _events(self, _: memoryview) -> int:
        self.table.look_at_sockets()
        return 0

    def check(self) -> None:
        """Fail where more is held than may be."""
        streams = self.table.streams
        if len(streams) > MOST:
            raise DefectError(f"there are {len(streams)} connections")
        for stream in streams:
            if stream.connection.held > BUFFER:
                raise DefectError(f"{stream.connection.held} bytes are held")

    def close(self) -> None:
        """Close everything."""
        self.table.close()
        for end in self.ends:
            end.close()


async def _run(data: bytes) -> None:
    run = _Run()
    try:
        rest = memoryview(data)
        while used := run.step(rest):
            run.check()
            rest = rest[used:]
    finally:
        run.close()


logging.getLogger("vhost_user.vsock").setLevel(logging.ERROR)


def one_input(data: bytes) -> None:
    """Fail unless the device keeps to the guest's room and to its own, whatever comes."""
    trio.run(_run, data)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield conversations of both kinds, with their ends in several orders."""

    def packet(
        op: int, *, flags: int = 0, length: int = 0, fwd_cnt: int = 0, port: int = 5, wrong: int = 0
    ) -> bytes:
        return bytes([PACKET]) + _PACKET.pack(op, port, 9, flags, length, 300, fwd_cnt, wrong)

    room = bytes([ROOM]) + (2000).to_bytes(2, "little")
    events = bytes([EVENTS])
    say, read, shut, leave = (bytes([HOST, 0, what]) for what in (10, 0x90, 0xC1, 0xF0))
    begin = packet(Operation.REQUEST) + room
    talk = packet(Operation.RW, length=100) + read + say + events + room * 2
    yield "guest_closes", begin + talk + packet(Operation.SHUTDOWN, flags=3) + room
    yield (
        "guest_ends_first",
        begin + packet(Operation.SHUTDOWN, flags=2) + say + events + room + leave + events + room,
    )
    yield "host_closes", begin + talk + leave + events + room * 2 + packet(Operation.RST)
    yield "host_ends_first", begin + shut + events + room + talk + leave + events + room
    yield (
        "credit",
        begin + say * 3 + events + room * 3 + packet(Operation.CREDIT_UPDATE, fwd_cnt=300) + room * 2,
    )
    yield "refused", packet(Operation.REQUEST, port=7) + room + packet(Operation.RST, port=7)
    yield "overrun", begin + packet(Operation.RW, length=5000) + room
    for bit in (OTHER_CID, OTHER_TYPE, TOO_SHORT, HIGH_CID, OTHER_HOST):
        yield f"wrong_{bit}", begin + packet(Operation.RW, length=9, wrong=bit) + room
    asked = bytes([ASK, 9]) + room
    yield (
        "asked",
        asked + packet(Operation.RESPONSE, port=0) + talk + packet(Operation.SHUTDOWN, flags=3, port=0),
    )
