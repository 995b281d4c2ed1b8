"""Any messages, descriptors and memory to a whole back-end, with a device that serves its queues.

An input is 2 bytes that say how much memory follows, that memory, which is the guest's from address 0
on, and messages. What kind of descriptor comes with a message depends on its number; its `kind` chooses
another. Messages with CHANNEL in their `option` come over the back-end's own channel.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import socket
from typing import TYPE_CHECKING

import trio
import trio.testing

from protocol import vhost_user as vu
from protocol.fds import OwnedFd, rights
from protocol.io import FdStream
from protocol.vhost_user import FrontendRequest as Number
from protocol.virtio.features import Feature
from protocol.virtio.ids import DeviceId
from tests.fuzz.deliveries import NEED_REPLY, VERSION, Delivery, deliveries, message
from tests.fuzz.guest import GUARD, NEIGHBOUR, REGIONS, RING
from tests.fuzz.harness import DefectError
from tests.fuzz.ring_seeds import memory
from tests.fuzz.rings import parts_of
from tests.fuzz.samples import ALL_PROTOCOL, FRONTEND
from vhost_user import VirtioDevice
from vhost_user.backend import serve_connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vhost_user import Virtqueue

CHANNEL = 0x80
"""Bit of `option`."""
_FILE_SIZE = 0x10000
_MAPPING: dict[int, type[vu.Request]] = {
    Number.SET_MEM_TABLE: vu.SetMemTable,
    Number.ADD_MEM_REG: vu.AddMemReg,
    Number.SET_LOG_BASE: vu.SetLogBase,
    Number.SET_INFLIGHT_FD: vu.SetInflightFd,
}
_file = OwnedFd(os.memfd_create("fuzz-server"))
os.ftruncate(_file.fileno(), _FILE_SIZE)
_whole = mmap.mmap(_file.fileno(), _FILE_SIZE)
_blank = bytes([GUARD]) * _FILE_SIZE


class Everything(VirtioDevice):
    """Writes back what it reads, and does all else that a device can be asked for."""

    device_id = DeviceId.CONSOLE
    name = "everything"
    num_queues = 2
    features = int(Feature.IN_ORDER)
    config = bytes(range(16))
    shared_memory = {0: 0x1000}  # noqa: RUF012

    async def run_queue(self, queue: Virtqueue) -> None:
        async for chain in queue:
            chain.writable.write(chain.readable.read(0x4000))
            chain.complete()

    def save_state(self) -> bytes:
        return b"state"

    def load_state(self, state: bytes) -> None:
        pass

    def send_rarp(self, mac: bytes) -> None:
        pass

    def set_mtu(self, mtu: int) -> None:
        pass

    def create_crypto_session(self, description: bytes) -> bytes:
        return description

    def close_crypto_session(self, session: int) -> None:
        pass

    def shared_object(self, uuid: UUID) -> OwnedFd:
        return OwnedFd(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


class _OneLine(logging.Handler):
    """Formats what is logged, as a log for people does."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if len(text.splitlines()) != 1 or record.exc_info:
            raise DefectError(f"logged: {text!r}")


_logger = logging.getLogger("vhost_user")
_logger.setLevel(logging.DEBUG)
_logger.propagate = False
_logger.addHandler(_OneLine())


class _FrontEnd:
    """Sends what the input says, and takes what comes back."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._channel: socket.socket | None = None
        self.mapped: list[slice] = []
        """What of the file the back-end was given to map."""

    async def run(self, data: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            with contextlib.suppress(OSError):  # the back-end has given up
                for delivery in deliveries(data):
                    await self._send(delivery)
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()
        if self._channel is not None:
            self._channel.close()

    async def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, ancillary, _, _ = await self._sock.recvmsg(0x10000, socket.CMSG_SPACE(4 * 16))
                for _, _, numbers in ancillary:
                    for number in memoryview(numbers).cast("i"):
                        os.close(number)
                if not data:
                    return

    async def _send(self, delivery: Delivery) -> None:
        if delivery.option & CHANNEL:
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.send(delivery.data)
            return
        if (kind := _MAPPING.get(delivery.number)) is not None and delivery.fds:
            with contextlib.suppress(ValueError):
                self._note(kind.decode(delivery.data[12:]))
        fds = [self._descriptor(delivery) for _ in range(delivery.fds)]
        try:
            data, ancillary = delivery.data, rights(*(fd.fileno() for fd in fds))
            while data:
                data = data[await self._sock.sendmsg([data], ancillary) :]
                ancillary = []
        finally:
            for fd in fds:
                fd.close()

    def _note(self, request: vu.Request) -> None:
        if isinstance(request, vu.SetMemTable):
            parts = [(region.mmap_offset, region.size) for region in request.regions]
        elif isinstance(request, vu.AddMemReg):
            parts = [(request.region.mmap_offset, request.region.size)]
        elif isinstance(request, vu.SetInflightFd):
            parts = [(request.mmap_offset, request.mmap_size)]
        else:
            assert isinstance(request, vu.SetLogBase)
            parts = [(request.offset, request.size)]
        self.mapped += [slice(start, start + size) for start, size in parts if start + size <= _FILE_SIZE]

    def _descriptor(self, delivery: Delivery) -> OwnedFd:
        number, kind = delivery.number, delivery.kind & 7
        if kind:
            number = (Number.SET_MEM_TABLE, Number.SET_VRING_KICK, Number.SET_BACKEND_REQ_FD, 0)[kind & 3]
        if number in _MAPPING:
            return _file.dup()
        if number in {Number.SET_VRING_KICK, Number.SET_VRING_CALL, Number.SET_VRING_ERR, Number.SET_LOG_FD}:
            return OwnedFd(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        if number == Number.SET_BACKEND_REQ_FD:
            if self._channel is not None:
                self._channel.close()
            self._channel, theirs = socket.socketpair()
            self._channel.setblocking(False)
            return OwnedFd(theirs.detach())
        if number == Number.SET_DEVICE_STATE_FD:
            ours, theirs_fd = os.pipe()
            os.close(theirs_fd)
            return OwnedFd(ours)
        return OwnedFd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))


def one_input(data: bytes) -> None:
    """Fail unless the connection ends without an error, with nothing written outside what was mapped."""
    size = int.from_bytes(data[:2], "little")
    content = data[2 : 2 + size][: RING.size]
    _whole[:] = _blank
    for region in REGIONS:
        _whole[region.mmap_offset : region.mmap_offset + region.size] = bytes(region.size)
    _whole[RING.mmap_offset : RING.mmap_offset + len(content)] = content
    expected = bytearray(_whole[:])
    mapped = trio.run(_serve, data[2 + size :], clock=trio.testing.MockClock(autojump_threshold=0))
    found = _whole[:]
    for part in mapped:
        expected[part] = found[part]
    if found != expected:
        place = next(i for i in range(_FILE_SIZE) if found[i] != expected[i])
        raise DefectError(f"the byte {place:#x} of the file was changed; it was not given to be mapped")


async def _serve(data: bytes) -> list[slice]:
    ours, theirs = socket.socketpair()
    front_end = _FrontEnd(ours)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front_end.run, data)
            await serve_connection(Everything(), FdStream(theirs))
    finally:
        front_end.close()
    return front_end.mapped


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield whole lives of a connection, and one in which everything is asked for."""
    for kind in ("split", "packed"):
        yield f"life_{kind}", _life(kind)
    yield (
        "everything",
        bytes(2)
        + b"".join(
            message(each.number, each.encode(), VERSION | NEED_REPLY, fds=max(each.allowed_fds()))
            for each in FRONTEND
            if each.number not in {Number.SET_FEATURES, Number.SET_PROTOCOL_FEATURES, Number.RESET_OWNER}
        ),
    )
    yield "migration", _life("split", tracked=True)


def _life(kind: str, *, tracked: bool = False) -> bytes:
    features = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.PROTOCOL_FEATURES
    if kind == "packed":
        features |= Feature.RING_PACKED
    if tracked:
        features |= Feature.LOG_ALL
    content = memory(kind, 8, int(features), [([b"question"], [16]), ([b"again"], [8])], indirect=True)
    table, avail, used, _ = parts_of(kind, 8)
    user = RING.user_address
    regions = tuple(
        vu.MemoryRegion(each.guest_address, each.size, each.user_address, each.mmap_offset)
        for each in (RING, NEIGHBOUR)
    )
    flags = vu.VringAddressFlag.LOG if tracked else vu.VringAddressFlag(0)
    protocol = Everything().offered_protocol_features.without(vu.ProtocolFeature.INBAND_NOTIFICATIONS)
    requests: list[vu.Request] = [
        vu.GetFeatures(),
        vu.GetProtocolFeatures(),
        vu.SetProtocolFeatures(protocol & ALL_PROTOCOL),
        vu.SetOwner(),
        vu.SetBackendReqFd(),
        vu.SetFeatures(features),
        vu.SetMemTable(regions),
    ]
    if tracked:
        requests += [
            vu.SetLogBase(0x20, 0),
            vu.GetInflightFd(0, 0, 1, 8),
            vu.SetInflightFd(0x100, 0xF000, 1, 8),
        ]
    requests += [
        vu.SetVringNum(0, 8),
        vu.SetVringBase(0, 0 if kind == "split" else 0x8000_8000),
        vu.SetVringAddr(0, flags, user + table, user + used, user + avail, used),
        vu.SetVringCall(0),
        vu.SetVringErr(0),
        vu.SetVringKick(0),
        vu.SetVringEnable(0, True),
        vu.GetConfig(0, 8),
        vu.GetVringBase(0),
        vu.SetVringKick(0),
        vu.SetStatus(vu.SetStatus.decode(bytes(8)).status),
        vu.ResetDevice(),
    ]
    parts = [message(each.number, each.encode(), fds=max(each.allowed_fds())) for each in requests]
    return len(content).to_bytes(2, "little") + content + b"".join(parts)
